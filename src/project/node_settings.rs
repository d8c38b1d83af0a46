//! Django settings of a node, over a project's own: where files lie, what only the node
//! knows.

use std::fmt::Write as _;

use super::django::{Database, Django, SecretKey};
use super::variable;

/// The module.
pub const MODULE: &str = "node_settings";

/// The text of the settings of a node. Nothing in it looks like a template's.
pub fn text(django: &Django, home: &str) -> String {
    let Django { settings, .. } = django;
    let mut text =
        "import os\nfrom pathlib import Path\n\n\n\
         def secret(name):\n    \
         \"\"\"A secret of the node; at bake, where there are none, one that is thrown away.\"\"\"\n    \
         if os.environ.get(\"SITE_WITHOUT_SECRETS\"):\n        \
         return \"none at bake\"\n    \
         return Path(\"/run/project/secrets\", name).read_text(encoding=\"utf-8\").strip()\n\n\n".to_owned();
    let mut variables: Vec<&String> =
        django.variables.iter().filter(|name| variable::is_secret(name)).collect();
    if let SecretKey::Variable(name) = &django.secret_key {
        variables.insert(0, name);
    }
    for name in variables {
        let _ = writeln!(text, "os.environ[\"{name}\"] = secret(\"{name}\")");
    }
    if django.database == Database::Sqlite {
        let _ = writeln!(
            text,
            "os.environ.setdefault(\"DATABASE_URL\", \"sqlite:///{home}/data/site.sqlite3\")"
        );
    }
    let _ = write!(text, "\nfrom {settings} import *\n\n");
    if django.secret_key == SecretKey::Override {
        text.push_str("SECRET_KEY = secret(\"SECRET_KEY\")\n");
    }
    if django.debug {
        text.push_str("DEBUG = False\n");
    }
    let hosts = if django.has_hosts { "*ALLOWED_HOSTS, " } else { "" };
    let _ = writeln!(
        text,
        "ALLOWED_HOSTS = [{hosts}*os.environ.get(\"SITE_HOSTS\", \"\").split()]\n\
         # Only nginx reaches the server, and it sets this header itself.\n\
         SECURE_PROXY_SSL_HEADER = (\"HTTP_X_FORWARDED_PROTO\", \"https\")"
    );
    if django.has_middleware {
        let _ = writeln!(
            text,
            "\n\ndef remote_address(get_response):\n    \
             \"\"\"The client's address, which nginx tells: a unix socket has none.\"\"\"\n\n    \
             def answer(request):\n        \
             request.META[\"REMOTE_ADDR\"] = request.META.get(\"HTTP_X_REAL_IP\", \"127.0.0.1\")\n        \
             return get_response(request)\n\n    \
             return answer\n\n\n\
             MIDDLEWARE = [\"{MODULE}.remote_address\", *MIDDLEWARE]"
        );
    }
    if django.database == Database::Sqlite {
        let _ = writeln!(
            text,
            "if DATABASES[\"default\"][\"ENGINE\"].endswith(\".sqlite3\"):\n    \
             DATABASES[\"default\"][\"NAME\"] = \"{home}/data/site.sqlite3\""
        );
    }
    if django.static_location.is_some() {
        let _ = writeln!(text, "STATIC_ROOT = \"{home}/static\"");
    }
    if django.media_location.is_some() {
        let _ = writeln!(text, "MEDIA_ROOT = \"{home}/media\"");
    }
    if !django.has_logging {
        text.push_str(
            "# Errors go where the server's own lines go.\n\
             LOGGING = dict(\n    version=1,\n    disable_existing_loggers=False,\n    \
             handlers=dict(stderr=dict([(\"class\", \"logging.StreamHandler\")])),\n    \
             root=dict(handlers=[\"stderr\"], level=\"WARNING\"),\n)\n",
        );
    }
    text
}
