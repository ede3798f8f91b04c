"""A ``PeftModel`` in the module that is taken as it is: its adapters, its handle, its files."""
