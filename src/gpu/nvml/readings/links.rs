//! A card's connections: PCIe to the host, NVLink to other cards.
//!
//! `nvmlDeviceGetPcieThroughput` is not used: it measures for 20 ms and holds the thread meanwhile. Newer
//! drivers count bytes.

use super::{super::raw::Field, Fixed, Reader};
use crate::{
    gpu::nvml::{asks::Wanted, errors::Done},
    snapshot::{NvLink, Pcie},
    units::Bytes,
};
use nvml_wrapper::{
    enum_wrappers::nv_link::ErrorCounter,
    error::NvmlError,
    sys_exports::field_id::{
        NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS, NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES,
        NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
        NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_FI_DEV_PCIE_COUNT_RX_BYTES,
        NVML_FI_DEV_PCIE_COUNT_TX_BYTES,
    },
};

/// `NVML_NVLINK_MAX_LINKS`.
const LINKS_MAX: u32 = 18;

/// The unit of the older counters of bytes over NVLink.
const KIB: u64 = 1024;

const PCIE: [Wanted; 2] = [
    ("PCIe bytes sent", Field { id: NVML_FI_DEV_PCIE_COUNT_TX_BYTES, scope: 0 }),
    ("PCIe bytes received", Field { id: NVML_FI_DEV_PCIE_COUNT_RX_BYTES, scope: 0 }),
];

pub(super) fn steady(reader: &mut Reader<'_, '_>, fixed: &mut Fixed) -> Done {
    reader.learn(&mut fixed.pcie_generation_max, "highest PCIe generation", |device| {
        device.max_pcie_link_gen()
    })?;
    reader.learn(&mut fixed.pcie_width_max, "most PCIe lanes", |device| {
        device.max_pcie_link_width()
    })?;
    if fixed.links.is_none() {
        // Each link says for itself whether it is there; a link that is down is. A card without any
        // refuses all of them.
        let links = reader.ask("NVLinks", |device| {
            let mut there = Vec::new();
            for link in 0..LINKS_MAX {
                match device.link_wrapper_for(link).is_active() {
                    Ok(_) => there.push(link),
                    Err(NvmlError::NotSupported | NvmlError::InvalidArg | NvmlError::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(there)
        })?;
        fixed.links = links.or_else(|| reader.asks.lacks("NVLinks").then(Vec::new));
    }
    Ok(())
}

/// All but what it can at most.
pub(super) fn pcie(reader: &mut Reader<'_, '_>) -> Done<Pcie> {
    let generation = reader.ask("PCIe generation", |device| device.current_pcie_link_gen())?;
    let width = reader.ask("PCIe lanes", |device| device.current_pcie_link_width())?;
    let replays = reader.ask("PCIe replays", |device| device.pcie_replay_counter())?;
    let counted = reader.fields(&PCIE)?;
    let bytes = |place: usize| counted.get(place).copied().flatten().map(Bytes);
    Ok(Pcie {
        generation,
        generation_max: None,
        width,
        width_max: None,
        replays: replays.map(u64::from),
        sent: bytes(0),
        received: bytes(1),
    })
}

pub(super) fn nvlinks(reader: &mut Reader<'_, '_>, fixed: &Fixed) -> Done<Vec<NvLink>> {
    let mut links = Vec::new();
    for link in fixed.links.iter().flatten().copied() {
        links.extend(nvlink(reader, link)?);
    }
    let mut up: Vec<&mut NvLink> = links.iter_mut().filter(|link| link.active).collect();
    if !up.is_empty() {
        bytes(reader, &mut up)?;
    }
    Ok(links)
}

/// One link without its bytes; `None` when it would not say whether it is up. One that is down has no
/// counters, and lacks them only until it is up again.
fn nvlink(reader: &mut Reader<'_, '_>, link: u32) -> Done<Option<NvLink>> {
    let device = reader.device;
    let part = Some(link);
    let Some(active) =
        reader.asks.ask_of(part, "NVLink state", || device.link_wrapper_for(link).is_active())?
    else {
        return Ok(None);
    };
    let mut count = |reading, counter| {
        let call = || device.link_wrapper_for(link).error_counter(counter);
        if active { reader.asks.ask_of(part, reading, call) } else { Ok(None) }
    };
    let data = count("NVLink CRC errors of data", ErrorCounter::DlCrcData)?;
    let flow = count("NVLink CRC errors of flow control", ErrorCounter::DlCrcFlit)?;
    Ok(Some(NvLink {
        link,
        active,
        crc_errors: add(data, flow),
        replay_errors: count("NVLink replays", ErrorCounter::DlReplay)?,
        recovery_errors: count("NVLink recoveries", ErrorCounter::DlRecovery)?,
        sent: None,
        received: None,
    }))
}

/// Fills in the bytes of links that are up, in one call for the older counters, and in another for the newer ones
/// where these are missing: Blackwell dropped the older counters, of errors too.
fn bytes(reader: &mut Reader<'_, '_>, links: &mut [&mut NvLink]) -> Done {
    let older = |link: &&mut NvLink| {
        [
            ("NVLink data sent", NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX),
            ("NVLink data received", NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX),
        ]
        .map(|(reading, id)| (reading, Field { id, scope: link.link }))
    };
    let told = reader.fields(&links.iter().flat_map(older).collect::<Vec<_>>())?;
    for (link, told) in links.iter_mut().zip(told.chunks_exact(2)) {
        if let [sent, received] = told {
            link.sent = sent.map(|kib| Bytes(kib.saturating_mul(KIB)));
            link.received = received.map(|kib| Bytes(kib.saturating_mul(KIB)));
        }
    }
    if links.iter().all(|link| link.sent.is_some() && link.recovery_errors.is_some()) {
        return Ok(());
    }
    let newer = |link: &&mut NvLink| {
        [
            ("NVLink bytes sent", NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES),
            ("NVLink bytes received", NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES),
            ("NVLink recovery events", NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS),
        ]
        .map(|(reading, id)| (reading, Field { id, scope: link.link }))
    };
    let told = reader.fields(&links.iter().flat_map(newer).collect::<Vec<_>>())?;
    for (link, told) in links.iter_mut().zip(told.chunks_exact(3)) {
        if let [sent, received, recoveries] = told {
            link.sent = link.sent.or(sent.map(Bytes));
            link.received = link.received.or(received.map(Bytes));
            link.recovery_errors = link.recovery_errors.or(*recoveries);
        }
    }
    Ok(())
}

/// The sum of what is known.
fn add(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.saturating_add(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_unknown_parts_is_unknown() {
        assert_eq!(add(None, None), None);
        assert_eq!(add(Some(2), None), Some(2));
        assert_eq!(add(Some(2), Some(3)), Some(5));
    }
}
