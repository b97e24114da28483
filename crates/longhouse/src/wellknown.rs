//! `longhouse wellknown`: how the web server of the bare domain answers where this server is (client-server API, "Server
//! Discovery"; server-server API, "Server discovery"). Pure text; knows the two documents and five web servers.

use homeserver::client_api::SFU_SERVICE_PATH;
use serde_json::json;

use crate::cli::WellknownTarget;
use crate::config::{Config, host_of};

/// What to put in front of the domain in the server name, for a server that is reached at another address.
pub(crate) fn text(config: &Config, target: WellknownTarget) -> String {
    let documents = Documents::of(config);
    match target {
        WellknownTarget::Nginx => documents.nginx(),
        WellknownTarget::Caddy => documents.caddy(),
        WellknownTarget::Traefik => documents.traefik(),
        WellknownTarget::Worker => documents.worker(),
        WellknownTarget::Static => documents.files(),
    }
}

struct Documents {
    /// Host of the server name: whose web server answers.
    domain: String,
    public_url: String,
    client: String,
    server: String,
}

impl Documents {
    fn of(config: &Config) -> Self {
        let public_url = config.public_url();
        let mut client = json!({ "m.homeserver": { "base_url": public_url } });
        if config.sfu.enabled {
            client["org.matrix.msc4143.rtc_foci"] =
                json!([{ "type": "livekit", "livekit_service_url": format!("{public_url}{SFU_SERVICE_PATH}") }]);
        }
        Self {
            domain: host_of(&config.server_name).to_owned(),
            client: client.to_string(),
            server: json!({ "m.server": authority_with_port(&public_url) }).to_string(),
            public_url,
        }
    }

    fn nginx(&self) -> String {
        let Self {
            domain, client, server, ..
        } = self;
        format!(
            r#"# In the `server` block of {domain} that listens on 443:
location = /.well-known/matrix/client {{
    default_type application/json;
    add_header Access-Control-Allow-Origin "*" always;
    return 200 '{client}';
}}
location = /.well-known/matrix/server {{
    default_type application/json;
    return 200 '{server}';
}}
"#
        )
    }

    fn caddy(&self) -> String {
        let Self {
            domain, client, server, ..
        } = self;
        format!(
            r#"{domain} {{
    header /.well-known/matrix/* Content-Type application/json
    header /.well-known/matrix/* Access-Control-Allow-Origin *
    respond /.well-known/matrix/client `{client}` 200
    respond /.well-known/matrix/server `{server}` 200
}}
"#
        )
    }

    /// Traefik answers nothing by itself: it hands the two paths to Longhouse, which answers for every host.
    fn traefik(&self) -> String {
        let Self { domain, public_url, .. } = self;
        format!(
            r#"# Dynamic configuration. Traefik passes the two documents on to Longhouse, which serves them itself.
http:
  routers:
    longhouse-well-known:
      rule: "Host(`{domain}`) && PathPrefix(`/.well-known/matrix/`)"
      entryPoints: [websecure]
      tls: {{}}
      service: longhouse-well-known
  services:
    longhouse-well-known:
      loadBalancer:
        passHostHeader: false
        servers:
          - url: "{public_url}"
"#
        )
    }

    fn worker(&self) -> String {
        let Self {
            domain, client, server, ..
        } = self;
        format!(
            r#"// Cloudflare Worker for the route {domain}/.well-known/matrix/*
const documents = {{
  "/.well-known/matrix/client": {client},
  "/.well-known/matrix/server": {server},
}};

export default {{
  async fetch(request) {{
    const found = documents[new URL(request.url).pathname];
    if (!found) return new Response("not found", {{ status: 404 }});
    return Response.json(found, {{ headers: {{ "access-control-allow-origin": "*" }} }});
  }},
}};
"#
        )
    }

    fn files(&self) -> String {
        let Self {
            domain, client, server, ..
        } = self;
        format!(
            r#"# Two files below the document root of https://{domain}. Serve them as application/json, the first with the
# header `Access-Control-Allow-Origin: *`.

.well-known/matrix/client:
{client}

.well-known/matrix/server:
{server}
"#
        )
    }
}

/// Other servers look at port 8448 unless the document names one.
fn authority_with_port(public_url: &str) -> String {
    let (authority, default_port) = match public_url.split_once("://") {
        Some(("http", authority)) => (authority, 80),
        Some((_, authority)) => (authority, 443),
        None => (public_url, 443),
    };
    if host_of(authority) == authority {
        format!("{authority}:{default_port}")
    } else {
        authority.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_names_the_server() {
        let config = Config {
            server_name: "example.org".to_owned(),
            ..Config::default()
        };
        for target in [
            WellknownTarget::Nginx,
            WellknownTarget::Caddy,
            WellknownTarget::Worker,
            WellknownTarget::Static,
        ] {
            let text = text(&config, target);
            for part in [
                r#"{"m.homeserver":{"base_url":"https://example.org"}"#,
                r#""livekit_service_url":"https://example.org/livekit/jwt""#,
                r#"{"m.server":"example.org:443"}"#,
            ] {
                assert!(text.contains(part), "{target:?} lacks {part}: {text}");
            }
        }
        assert!(text(&config, WellknownTarget::Traefik).contains("https://example.org"));
    }

    #[test]
    fn ports_are_named() {
        for (url, expected) in [
            ("https://a.org", "a.org:443"),
            ("https://a.org:8448", "a.org:8448"),
            ("http://a.org", "a.org:80"),
            ("https://[::1]", "[::1]:443"),
            ("https://[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(authority_with_port(url), expected);
        }
    }
}
