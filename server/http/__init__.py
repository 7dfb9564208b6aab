"""HTTP: everything that knows of requests, headers and status codes."""
