"""Sources and roads under faults: messages from a broker through connectors and replicas to an outgoing place."""
