"""Inferring the schema of a table. Only fitting needs it: none of it is published with a pipeline."""
