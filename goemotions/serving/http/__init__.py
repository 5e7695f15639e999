"""HTTP: its connections, the bodies of requests, the routes of V1 and V2, and the page."""
