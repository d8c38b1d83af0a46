"""Makes the site's database: tables, Mezzanine's first pages, and an administrator."""

import os
from pathlib import Path

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection

from website.settings import secret


class Command(BaseCommand):
    help = "Creates the database with an administrator, unless there is one."
    # The checks look into the database, and there is none yet.
    requires_system_checks = []

    def handle(self, **options):
        database = Path(connection.settings_dict["NAME"])
        if database.exists():
            self.stdout.write(f"{database} is there already")
            return
        # Made under another name: whatever interrupts this, a database that is there is
        # a whole one.
        unfinished = database.with_name(database.name + ".unfinished")
        for leftover in (unfinished, unfinished.with_name(unfinished.name + "-journal")):
            leftover.unlink(missing_ok=True)
        password = secret("ADMIN_PASSWORD")
        connection.close()
        connection.settings_dict["NAME"] = str(unfinished)
        call_command("createdb", interactive=False, verbosity=0)
        get_user_model().objects.create_superuser("admin", "admin@localhost", password)
        connection.close()
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.rename(database)
        directory = os.open(database.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        self.stdout.write(f"created {database}; the administrator is admin")
