"""The message contract as a document: AsyncAPI 3 and JSON Schemas, made from the models."""
