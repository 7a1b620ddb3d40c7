"""What both services need of their database: connections, schema, roles, statements."""
