//! A relay alone, for trying it against other implementations and for measuring it:
//! `turn_server LISTEN SECRET [ALLOWED_NETWORK]`, for example `turn_server 127.0.0.1:3478 north 127.0.0.0/8`.

use std::io::Write;

use credentials::turn::TurnSecret;
use fabric::switch::Switch;
use relay::Config;
use tokio_util::sync::CancellationToken;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(secret)) = (arguments.next(), arguments.next()) else {
        return Err("usage: turn_server LISTEN SECRET [ALLOWED_NETWORK]".into());
    };
    let config = Config {
        listen: vec![listen.parse()?],
        allow_peers: arguments.map(|net| net.parse()).collect::<Result<_, _>>()?,
        relay_ports: "20000-27999".parse()?,
        max_allocations_per_user: 4096,
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let relay = relay::start(
            &config,
            TurnSecret::new(secret),
            "example.org",
            Switch::new(),
            Vec::new(),
            shutdown.clone(),
        )?;
        for (protocol, address) in relay.listeners() {
            writeln!(std::io::stdout(), "listening on {protocol} {address}")?;
        }
        tokio::signal::ctrl_c().await?;
        writeln!(std::io::stdout(), "{:?}", relay.stats())?;
        shutdown.cancel();
        relay.stopped().await;
        Ok(())
    })
}
