"""How what the broker sends is read: odd properties too, and deliveries without detours."""
