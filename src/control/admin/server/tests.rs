use std::future::Future;

use tokio::io::{DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

use super::super::ask::Order;
use super::*;

const RELOAD: &[u8] = b"POST /reload HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// An endpoint and a visitor on time that is stepped.
struct Played {
    endpoint: Rc<Endpoint>,
    asks: mpsc::Receiver<Ask>,
    client: DuplexStream,
    exchange: JoinHandle<()>,
}

impl Played {
    /// One who says this.
    async fn saying(request: &[u8]) -> Self {
        let settings = config::Admin {
            listen: None,
            token: None,
            max_series: 1.try_into().unwrap(),
        };
        let (endpoint, asks) = Endpoint::new(&settings);
        let place = endpoint.places.clone().acquire_owned().await.unwrap();
        let visit = Rc::new(Visit::new(false, "a test".to_owned(), place));
        let (mut client, stream) = duplex(64 << 10);
        let exchange = spawn_local(endpoint.clone().exchange(stream, visit));
        client.write_all(request).await.unwrap();
        Self {
            endpoint,
            asks,
            client,
            exchange,
        }
    }

    /// What it was ordered to do.
    async fn ordered(&mut self) -> oneshot::Sender<Ordered> {
        match self.asks.recv().await {
            Some(Ask::Order(Order::Reload, answer)) => answer,
            _ => panic!("a reload was ordered"),
        }
    }
}

async fn play(game: impl Future<Output = ()>) {
    LocalSet::new().run_until(game).await;
}

#[tokio::test(start_paused = true)]
async fn an_order_that_takes_two_minutes_is_answered() {
    play(async {
        let mut played = Played::saying(RELOAD).await;
        let answer = played.ordered().await;
        sleep(ORDER_TIMEOUT).await;
        answer.send(Ok("done".into())).unwrap();
        let mut said = String::new();
        played.client.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_order_that_hangs_does_not_keep_its_visitor_for_ever() {
    play(async {
        let mut played = Played::saying(RELOAD).await;
        let _answer = played.ordered().await;
        let begun = Instant::now();
        played.exchange.await.unwrap();
        assert_eq!(begun.elapsed(), EXCHANGE_TIMEOUT * 2 + ORDER_TIMEOUT);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_order_whose_visitor_has_gone_is_waited_for_and_holds_its_place() {
    play(async {
        let mut played = Played::saying(RELOAD).await;
        let answer = played.ordered().await;
        drop(played.client);
        played.exchange.await.unwrap();
        let places = || played.endpoint.places.available_permits();
        assert_eq!(places(), ADMIN_CONNECTIONS as usize - 1);
        answer.send(Ok("done".into())).expect("it is waited for");
        played.endpoint.emptied().await;
        assert_eq!(places(), ADMIN_CONNECTIONS as usize);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_does_not_order_has_thirty_seconds() {
    play(async {
        let begun = Instant::now();
        let played = Played::saying(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        played.exchange.await.unwrap();
        assert_eq!(begun.elapsed(), EXCHANGE_TIMEOUT);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn whoever_says_more_will_come_and_sends_nothing_is_told_so() {
    play(async {
        let begun = Instant::now();
        let head = b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n";
        let mut played = Played::saying(head).await;
        let mut said = String::new();
        played.client.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
        assert!(begun.elapsed() < EXCHANGE_TIMEOUT);
        assert!(played.asks.try_recv().is_err(), "nothing is done");
    })
    .await;
}
