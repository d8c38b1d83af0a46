"""Calls farmctl's supervisord and prints what it answers as JSON.

Usage: rpc.py SOCKET CALLS, where CALLS is a JSON list of [method, argument...]. They are
made one after the other; the answer is a list with an object for each, either
{"result": ...} or {"fault": code, "text": ...}, and ends with the first fault.
"""

import json
import sys
import xmlrpc.client

from supervisor.xmlrpc import SupervisorTransport


def main():
    socket, calls = sys.argv[1:]
    transport = SupervisorTransport(None, None, "unix://" + socket)
    server = xmlrpc.client.ServerProxy("http://localhost", transport=transport)
    answers = []
    for method, *arguments in json.loads(calls):
        try:
            answers.append({"result": getattr(server, method)(*arguments)})
        except xmlrpc.client.Fault as fault:
            answers.append({"fault": fault.faultCode, "text": fault.faultString})
            break
        except OSError as error:
            answers.append({"fault": 0, "text": f"{socket}: {error.strerror or error}"})
            break
    json.dump(answers, sys.stdout)


main()
