"""The studio: a web page with a room for everything that the command line does."""
