"""What stands on the sandbox: real servers, real processes."""
