"""Says which code it is."""


def application(environ, start_response):
    text = b"one"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text]
