"""What goes over the wire, read and written past the AMQP library: odd properties too."""
