"""The smallest words: record types, ids, partitions, durations, sizes, texts. Pure."""
