"""Tasks that take a while and leave their number and the time behind, once each time they are done."""

import os
import time

import celery

app = celery.Celery("tasks", broker="redis://127.0.0.1:18097/0")
DONE = "/srv/queue/done/numbers"


@app.task
def note(number):
    time.sleep(0.1)
    numbers = os.open(DONE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(numbers, b"%d %.3f\n" % (number, time.time()))
    os.close(numbers)
