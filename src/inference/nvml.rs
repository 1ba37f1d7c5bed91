// SPDX-License-Identifier: MPL-2.0
//! NVIDIA's cards as the driver tells them, through NVML. The library is found at run time; without it there are none.
//!
//! Not through CUDA itself: asking it makes a context of some hundred megabytes.
//!
//! Cards are numbered by their place on the bus, as `nvidia-smi` and `CUDA_DEVICE_ORDER=PCI_BUS_ID` number them, and
//! `CUDA_VISIBLE_DEVICES` leaves out and renumbers. CUDA's own default is the fastest first: where a machine has cards
//! of several kinds, a card is found again by its address.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use once_cell::sync::OnceCell;

/// Leaves out cards and renumbers them.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Place of a card: domain, bus, device.
pub type Address = (u32, u32, u32);

/// The driver's library.
pub fn driver() -> Result<&'static Nvml, String> {
    static NVML: OnceCell<Nvml> = OnceCell::new();
    NVML.get_or_try_init(Nvml::init).map_err(|e| match e {
        NvmlError::LibloadingError(_) => "no NVIDIA driver is installed".to_owned(),
        other => format!("the NVIDIA driver does not answer: {other}"),
    })
}

/// The cards that this process may use, by what never changes: their UUIDs.
pub fn visible_cards() -> Result<Vec<String>, String> {
    let nvml = driver()?;
    let text = |e: NvmlError| e.to_string();
    let all: Vec<String> = (0..nvml.device_count().map_err(text)?)
        .map(|index| nvml.device_by_index(index).and_then(|card| card.uuid()))
        .collect::<Result<_, _>>()
        .map_err(text)?;
    let variable = std::env::var_os(VISIBLE);
    Ok(visible(
        variable.as_ref().map(|v| v.to_str().unwrap_or("")),
        &all,
    ))
}

/// The card with this number.
pub fn card(number: u32) -> Result<String, String> {
    let cards = visible_cards()?;
    cards.get(number as usize).cloned().ok_or_else(|| {
        let limited = match std::env::var(VISIBLE) {
            Ok(list) => format!(" ({VISIBLE} is \"{list}\")"),
            Err(_) => String::new(),
        };
        match cards.len() {
            0 => format!("there is no card{limited}"),
            1 => format!("there is no card cuda:{number}, only cuda:0{limited}"),
            n => format!(
                "there is no card cuda:{number}, only cuda:0 to cuda:{}{limited}",
                n - 1
            ),
        }
    })
}

/// Where the card with this number is on the bus.
pub fn address(number: u32) -> Result<Address, String> {
    let uuid = card(number)?;
    let place = driver()?
        .device_by_uuid(uuid.as_str())
        .and_then(|card| card.pci_info())
        .map_err(|e| format!("the card {uuid} does not say where it is: {e}"))?;
    Ok((place.domain, place.bus, place.device))
}

/// `0000:1b:00.0` as CUDA writes it.
pub fn parse_address(text: &str) -> Option<Address> {
    let mut parts = text.trim().split([':', '.']);
    let mut number = || u32::from_str_radix(parts.next()?, 16).ok();
    Some((number()?, number()?, number()?))
}

/// As CUDA reads its variable: numbers and beginnings of UUIDs, up to the first that is wrong.
fn visible(variable: Option<&str>, all: &[String]) -> Vec<String> {
    let Some(list) = variable else {
        return all.to_vec();
    };
    let mut out: Vec<String> = Vec::new();
    for name in list.split(',').map(str::trim) {
        let found = if name.starts_with("MIG-") {
            Some(name.to_owned())
        } else if name.starts_with("GPU-") {
            all.iter().find(|uuid| uuid.starts_with(name)).cloned()
        } else {
            let index: Option<usize> = name.parse().ok();
            index.and_then(|i| all.get(i)).cloned()
        };
        match found {
            Some(uuid) if !out.contains(&uuid) => out.push(uuid),
            _ => break,
        }
    }
    out
}

/// Whether the process numbers that the driver tells are ours. In a container with numbers of its own they are the
/// machine's, if it tells any.
pub fn tells_processes() -> bool {
    /// The first namespace's number is the same on every Linux.
    const FIRST: &str = "pid:[4026531836]";
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|ns| ns.to_str() == Some(FIRST))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_read_as_cuda_reads_it() {
        let all = ["GPU-aa11", "GPU-bb22", "GPU-cc33"].map(str::to_owned);
        let seen = |variable| visible(variable, &all);

        assert_eq!(seen(None), all);
        assert_eq!(seen(Some("2,0")), ["GPU-cc33", "GPU-aa11"]);
        assert_eq!(seen(Some(" GPU-bb , 0")), ["GPU-bb22", "GPU-aa11"]);
        assert_eq!(seen(Some("1,-1,0")), ["GPU-bb22"]);
        assert_eq!(seen(Some("1,7,0")), ["GPU-bb22"]);
        assert_eq!(seen(Some("MIG-9f")), ["MIG-9f"]);
        for none in ["", "-1", "none", "3"] {
            assert!(seen(Some(none)).is_empty(), "{none}");
        }
    }

    #[test]
    fn an_address_is_read_as_cuda_writes_it() {
        assert_eq!(parse_address("0000:1b:00.0"), Some((0, 0x1b, 0)));
        assert_eq!(parse_address("0001:C3:1F.0"), Some((1, 0xc3, 0x1f)));
        assert_eq!(parse_address("1b:00"), None);
        assert_eq!(parse_address("?"), None);
    }
}
