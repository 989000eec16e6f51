//! Whose socket an address leads to.

use super::*;

// Anybody may listen on IPv6 alone at the port of a server that listens on IPv4.
#[tokio::test(start_paused = true)]
async fn who_listens_on_ipv6_alone_is_not_the_server_on_ipv4() {
    for bound in ["0.0.0.0", "127.0.0.1"] {
        let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(41, Some(5)), (90, Some(3))])]);
        node.process(41, 1, "vllm", "vllm.service");
        node.process(90, 1, "miner", "session-3.scope");
        node.listen("::", 8000, &[90]);
        node.listen(bound, 8000, &[41]);
        node.server("a", "127.0.0.1", 8000);
        let joined = node.join();
        assert_eq!(of(&joined, "a"), on(&[("GPU-a", Some(5))], How::Socket), "{bound}");
    }
    let mut node = Node::new(vec![gpu("GPU-a", 9, 0, &[(41, Some(5))])]);
    node.process(41, 1, "vllm", "vllm.service");
    node.listen("::", 8000, &[41]);
    node.server("a", "127.0.0.1", 8000);
    let both = on(&[("GPU-a", Some(5))], How::Socket);
    assert_eq!(of(&node.join(), "a"), both, "a socket for both");
}
