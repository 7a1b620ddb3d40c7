"""What each user of the broker may do, as commands and as a file."""
