"""From the event log to Kafka, and back from there."""
