"""Wire formats: what clients send and what they get back, one file per API.

Nothing here serves HTTP. Requests are pydantic models that `body.parse_body` fills; responses are
plain dictionaries for `orjson`; streams are encoders that turn text into server-sent events.
"""
