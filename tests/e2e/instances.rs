//! The effects of an instance on the guest and on its neighbours.

use bellows_vmm::InstanceSpec;

use crate::fixture::{Guest, image_id};

/// Starts threads for ever, and prints a line once the kernel refuses more. (Threads take less memory than processes.)
const BOMB: &str = r#"
import threading, time
threading.stack_size(64 << 10)
told = False
while True:
    try:
        threading.Thread(target=time.sleep, args=(3600,)).start()
    except RuntimeError:
        if not told:
            print("full", flush=True)
        told = True"#;

#[test]
fn an_instance_that_starts_threads_for_ever_leaves_room_for_others() {
    let guest = Guest::ours().vcpus(2).boot();
    let mut spec = InstanceSpec::new("bomb".parse().unwrap(), image_id(), ["python3", "-c", BOMB]);
    spec.pids_max = 0;
    let bomb = guest.start_spec(&spec);
    bomb.wait_for("full");
    for round in 0..3 {
        assert_eq!(guest.shell(&format!("neighbour-{round}"), "(echo lives)").trim(), "lives");
    }
    bomb.instance.signal(9).unwrap();
    let (status, output) = bomb.finish();
    assert_eq!(status.code, 128 + 9, "{output}");
    guest.shutdown();
}
