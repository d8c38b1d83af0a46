"""Says which code it is."""

TEXT = b"one"


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [TEXT]
