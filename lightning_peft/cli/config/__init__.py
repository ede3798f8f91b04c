"""What was typed: help, checks, schemas and errors, before anything is built."""
