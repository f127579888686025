"""The HTTP server: who may ask, how it is answered, and TLS."""
