"""Settings of the site: where things lie in a session, and what Mezzanine needs."""

import os
import secrets
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from mezzanine.utils.conf import set_dynamic_settings

SITE = Path("/srv/mezzanine")
SECRETS = Path("/run/project/secrets")


def secret(name):
    """A secret of the node; at bake, where there are none, one that is thrown away."""
    if os.environ.get("SITE_WITHOUT_SECRETS"):
        return secrets.token_urlsafe(48)
    try:
        return (SECRETS / name).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ImproperlyConfigured(f"the secret {name} cannot be read: {error}") from error


SECRET_KEY = secret("SECRET_KEY")
NEVERCACHE_KEY = secret("NEVERCACHE_KEY")

DEBUG = False
ALLOWED_HOSTS = os.environ.get("SITE_HOSTS", "localhost 127.0.0.1").split()
# Only nginx reaches the server, and it sets this header itself.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

ROOT_URLCONF = "website.urls"
WSGI_APPLICATION = "website.wsgi.application"
SITE_ID = 1
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English")]
USE_I18N = False
USE_MODELTRANSLATION = False
TIME_ZONE = "UTC"
USE_TZ = True

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(SITE / "data" / "site.sqlite3"),
        # Seconds a worker waits while another one writes.
        "OPTIONS": {"timeout": 20},
    }
}

STATIC_URL = "/static/"
STATIC_ROOT = str(SITE / "static")
MEDIA_URL = "/media/"
MEDIA_ROOT = str(SITE / "media")
FILE_UPLOAD_PERMISSIONS = 0o644

AUTHENTICATION_BACKENDS = ["mezzanine.core.auth_backends.MezzanineBackend"]
SESSION_EXPIRE_AT_BROWSER_CLOSE = True

PACKAGE_NAME_FILEBROWSER = "filebrowser_safe"
PACKAGE_NAME_GRAPPELLI = "grappelli_safe"

INSTALLED_APPS = [
    "mezzanine.boot",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.redirects",
    "django.contrib.sessions",
    "django.contrib.sitemaps",
    "django.contrib.sites",
    "mezzanine.conf",
    "mezzanine.core",
    "mezzanine.generic",
    "mezzanine.pages",
    "mezzanine.blog",
    "mezzanine.forms",
    "mezzanine.galleries",
    "website",
    "django_comments",
    PACKAGE_NAME_FILEBROWSER,
    PACKAGE_NAME_GRAPPELLI,
    "django.contrib.admin",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "mezzanine.core.request.CurrentRequestMiddleware",
    "mezzanine.core.middleware.RedirectFallbackMiddleware",
    "mezzanine.core.middleware.AdminLoginInterfaceSelectorMiddleware",
    "mezzanine.core.middleware.SitePermissionMiddleware",
    "mezzanine.pages.middleware.PageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "context_processors": [
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "django.template.context_processors.debug",
                "django.template.context_processors.i18n",
                "django.template.context_processors.media",
                "django.template.context_processors.request",
                "django.template.context_processors.static",
                "django.template.context_processors.tz",
                "mezzanine.conf.context_processors.settings",
                "mezzanine.pages.context_processors.page",
            ],
            "loaders": [
                (
                    "django.template.loaders.cached.Loader",
                    [
                        "mezzanine.template.loaders.host_themes.Loader",
                        "django.template.loaders.app_directories.Loader",
                    ],
                )
            ],
        },
    }
]

# Errors go where gunicorn's own lines go.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    # By default errors are mailed, and there is no mail here.
    "loggers": {"django": {"handlers": ["stderr"], "level": "WARNING", "propagate": False}},
}

set_dynamic_settings(globals())
