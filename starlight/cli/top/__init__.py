"""`starlight top`: nodes live in a terminal. `command` asks them, `view` draws."""
