"""Everything that speaks AMQP: connections, consumers, queries, dead letters, topology."""
