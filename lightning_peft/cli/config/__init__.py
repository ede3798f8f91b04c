"""The command line and the config: help, checks, schemas and errors, before anything is built."""
