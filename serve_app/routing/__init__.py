"""Which replica gets a request, how many replicas there are, and where they listen."""
