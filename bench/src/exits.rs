//! A boot cut into phases, by the moments at which vCPUs left the guest: the tracepoint `kvm:kvm_exit`.

use std::time::Duration;

use super::boot::Phase;

/// A vCPU left the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The time by the host's monotonic clock.
    pub at: Duration,
    /// The processor's reason, as KVM names it.
    pub reason: String,
    /// Address of the guest's next instruction.
    pub rip: u64,
}

impl Exit {
    /// Reads a line of the tracer's text; `None` for other events and comments.
    ///
    /// ```text
    ///   vcpu0-531   [001] d..1.    12.345678: kvm_exit: vcpu 0 reason npf rip 0x1000000 info1 0x... info2 0x...
    /// ```
    pub fn parse(line: &str) -> Option<Self> {
        let (head, fields) = line.split_once(": kvm_exit: ")?;
        let (seconds, fraction) = head.rsplit(' ').next()?.split_once('.')?;
        let microseconds = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
        let at = Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(microseconds);
        let mut words = fields.split_ascii_whitespace().skip_while(|word| *word != "reason").skip(1);
        let reason = words.next()?.to_owned();
        let rip = words.skip_while(|word| *word != "rip").nth(1)?.strip_prefix("0x")?;
        Some(Self { at, reason, rip: u64::from_str_radix(rip, 16).ok()? })
    }

    /// Whether the guest was in its kernel, before or after the kernel has moved to its own addresses. Firmware runs below
    /// 1 MiB and right below 4 GiB.
    fn in_kernel(&self) -> bool {
        const LOADED: std::ops::Range<u64> = 16 << 20..1 << 30;
        LOADED.contains(&self.rip) || self.rip >> 63 != 0
    }
}

/// Milestones of a boot, by the host's monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// The monitor's process was about to be started.
    pub start: Duration,
    /// The guest's kernel handed over to the agent.
    pub init: Duration,
    /// The host knew that the agent can be called.
    pub ready: Duration,
}

/// Cuts a boot into phases; `exits` are in order of time.
pub fn phases(exits: &[Exit], moments: Moments) -> Vec<Phase> {
    let entered = exits.first().map_or(moments.init, |exit| exit.at);
    let kernel = exits.iter().find(|exit| exit.in_kernel()).map_or(entered, |exit| exit.at);
    let cuts = [
        ("monitor", moments.start, entered),
        ("firmware", entered, kernel),
        ("kernel", kernel, moments.init),
        ("agent", moments.init, moments.ready),
    ];
    let phase = |(name, from, to): (&str, Duration, Duration)| {
        let mut phase = Phase { name: name.to_owned(), time: to.saturating_sub(from), exits: Default::default() };
        for exit in exits.iter().filter(|exit| (from..to).contains(&exit.at)) {
            *phase.exits.entry(exit.reason.clone()).or_default() += 1;
        }
        phase
    };
    cuts.into_iter().map(phase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
 CPU 0/KVM-531     [001] d..1.     1.200000: kvm_exit: vcpu 0 reason npf rip 0xfff0 info1 0x14 info2 0xfffffff0 intr_info 0x0 error_code 0x0
 CPU 0/KVM-531     [001] .....     1.200001: kvm_page_fault: vcpu 0 rip 0xfff0 address 0xfffffff0 error_code 0x14
 CPU 0/KVM-531     [001] d..1.     1.250000: kvm_exit: vcpu 0 reason io rip 0xf1234 info1 0x510 info2 0x0
 CPU 0/KVM-531     [001] d..1.     1.300000: kvm_exit: reason npf rip 0x1000000 info 14 1000000
 CPU 0/KVM-531     [001] d..1.     1.400000: kvm_exit: vcpu 0 reason msr rip 0xffffffff81000000 info1 0x1 info2 0x0
 CPU 0/KVM-531     [001] d..1.     1.9: kvm_exit: vcpu 0 reason hlt rip 0xffffffff81000010 info1 0x1 info2 0x0
";

    fn milliseconds(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn lines_of_the_tracer_are_read() {
        let exits: Vec<Exit> = TRACE.lines().filter_map(Exit::parse).collect();
        assert_eq!(exits.len(), 5);
        assert_eq!(exits[1], Exit { at: milliseconds(1250), reason: "io".into(), rip: 0xf_1234 });
        assert_eq!(exits[2], Exit { at: milliseconds(1300), reason: "npf".into(), rip: 0x100_0000 });
        assert_eq!(exits[4].at, milliseconds(1900));
    }

    #[test]
    fn a_boot_is_cut_at_its_milestones() {
        let exits: Vec<Exit> = TRACE.lines().filter_map(Exit::parse).collect();
        let moments = Moments { start: milliseconds(1000), init: milliseconds(1500), ready: milliseconds(2000) };
        let phases = phases(&exits, moments);
        let times: Vec<_> = phases.iter().map(|phase| (phase.name.as_str(), phase.time.as_millis())).collect();
        assert_eq!(times, [("monitor", 200), ("firmware", 100), ("kernel", 200), ("agent", 500)]);
        let counts: Vec<u64> = phases.iter().map(|phase| phase.exits.values().sum()).collect();
        assert_eq!(counts, [0, 2, 2, 1]);
        assert_eq!(phases[1].exits["io"], 1);
    }

    #[test]
    fn without_exits_all_is_the_monitor_and_the_agent() {
        let moments = Moments { start: milliseconds(0), init: milliseconds(7), ready: milliseconds(9) };
        let times: Vec<_> = phases(&[], moments).iter().map(|phase| phase.time.as_millis()).collect();
        assert_eq!(times, [7, 0, 0, 2]);
    }
}
