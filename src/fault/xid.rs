//! What an Xid means: NVIDIA's numbers for what went wrong on a card, as classes of what has to be done.
//!
//! The numbers and what each asks for are those of NVIDIA's public Xid catalogue (its column of immediate
//! actions); the words are ours. A number that the catalogue leaves open is no death sentence: it makes a
//! card suspect.

/// What an Xid asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Only a reboot of the host brings the card back.
    Reboot,
    /// The card must be reset.
    Reset,
    /// As [`Class::Reset`], and the cards at the other ends of its NVLinks are in it too.
    NvLink,
    /// What ran on the card failed, or was made to; the card itself is well.
    Application,
    /// Worth counting, no more. Some only follow on another one.
    Note,
    /// The driver changed its mind about what the card needs: ask it.
    Recovery,
    /// Not in the table.
    Unknown,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Reboot,
        Self::Reset,
        Self::NvLink,
        Self::Application,
        Self::Note,
        Self::Recovery,
        Self::Unknown,
    ];

    /// The class's name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::Reset => "reset",
            Self::NvLink => "nvlink",
            Self::Application => "application",
            Self::Note => "note",
            Self::Recovery => "recovery",
            Self::Unknown => "unknown",
        }
    }
}

/// An Xid, looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xid {
    /// Its number.
    pub number: u32,
    /// What it asks for.
    pub class: Class,
    /// A few words; `None` where it is not in the table.
    pub name: Option<&'static str>,
}

impl Xid {
    /// Looks a number up.
    pub fn of(number: u32) -> Self {
        let found = TABLE.binary_search_by_key(&number, |(number, ..)| *number).ok();
        match found.and_then(|index| TABLE.get(index)) {
            Some(&(_, class, name)) => Self { number, class, name: Some(name) },
            None => Self { number, class: Class::Unknown, name: None },
        }
    }

    /// A sign that memory wears out, where it comes often: many corrected errors, rows that were remapped
    /// or pages retired.
    pub const fn tells_wear(self) -> bool {
        matches!(self.number, 63 | 92)
    }
}

impl std::fmt::Display for Xid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Xid {} ({})", self.number, self.name.unwrap_or("not in our table"))
    }
}

use Class::{Application, Note, NvLink, Reboot, Recovery, Reset};

/// Every number that the catalogue gives an action, in order.
const TABLE: [(u32, Class, &str); 95] = [
    (8, Application, "the GPU stopped processing"),
    (11, Application, "broken command stream"),
    (13, Application, "exception in the compute engine"),
    (14, Note, "the driver's own test error"),
    (25, Application, "illegal command stream"),
    (31, Application, "memory page fault"),
    (32, Application, "broken command stream seen by DMA"),
    (37, Note, "driver firmware error"),
    (38, Note, "driver firmware error"),
    (39, Application, "copy engine 0"),
    (40, Application, "copy engine 1"),
    (41, Application, "copy engine 2"),
    (43, Note, "a program was stopped by its own fault"),
    (44, Note, "fault while switching programs"),
    (45, Note, "cleaning up after an earlier error"),
    (46, Reset, "the GPU stopped processing"),
    (48, Reset, "double-bit memory error"),
    (60, Application, "video engine exception"),
    (62, Reset, "internal controller halted"),
    (63, Note, "memory row remapped or page retired"),
    (64, Reset, "memory row or page could not be retired"),
    (66, Note, "illegal access by the driver"),
    (67, Note, "illegal access by the driver"),
    (68, Application, "video decoder 0"),
    (69, Application, "unknown command class"),
    (70, Application, "copy engine 3"),
    (71, Application, "copy engine 4"),
    (72, Application, "copy engine 5"),
    (74, NvLink, "NVLink error"),
    (75, Application, "copy engine 6"),
    (76, Application, "copy engine 7"),
    (77, Application, "copy engine 8"),
    (79, Reboot, "the GPU has fallen off the bus"),
    (80, Application, "corrupted data sent to the GPU"),
    (82, Application, "JPEG engine 0"),
    (83, Application, "video decoder 1"),
    (84, Application, "video decoder 2"),
    (85, Application, "copy engine 9"),
    (86, Application, "optical flow engine"),
    (88, Application, "video decoder 3"),
    (89, Application, "video decoder 4"),
    (92, Note, "many corrected memory errors"),
    (93, Note, "the card's settings memory wears out"),
    (94, Application, "contained memory error"),
    (95, Reset, "uncontained memory error"),
    (96, Application, "video decoder 5"),
    (97, Application, "video decoder 6"),
    (98, Application, "video decoder 7"),
    (99, Application, "JPEG engine 1"),
    (100, Application, "JPEG engine 2"),
    (101, Application, "JPEG engine 3"),
    (102, Application, "JPEG engine 4"),
    (103, Application, "JPEG engine 5"),
    (104, Application, "JPEG engine 6"),
    (105, Application, "JPEG engine 7"),
    (106, Note, "management bus test"),
    (107, Note, "silent management bus test"),
    (109, Reset, "timeout while switching programs"),
    (110, Reset, "security fault"),
    (119, Reset, "the GPU's system processor does not answer"),
    (120, Reset, "error in the GPU's system processor"),
    (121, Note, "chip-to-chip link error"),
    (126, Application, "copy engine 10"),
    (127, Application, "copy engine 11"),
    (128, Application, "copy engine 12"),
    (129, Application, "copy engine 13"),
    (130, Application, "copy engine 14"),
    (131, Application, "copy engine 15"),
    (132, Application, "copy engine 16"),
    (133, Application, "copy engine 17"),
    (134, Application, "copy engine 18"),
    (135, Application, "copy engine 19"),
    (136, Reset, "link training failed"),
    (137, Note, "illegal access over NVLink"),
    (139, Application, "optical flow engine 1"),
    (140, Reset, "memory error that nothing recovered"),
    (141, Note, "fast path error"),
    (143, Reset, "the GPU could not be initialised"),
    (144, NvLink, "NVLink error (SAW)"),
    (145, NvLink, "NVLink error (RLW)"),
    (146, NvLink, "NVLink error (TLW)"),
    (147, NvLink, "NVLink error (TREX)"),
    (148, NvLink, "NVLink error (NVLPW)"),
    (149, NvLink, "NVLink error (NETIR)"),
    (150, NvLink, "NVLink error (MSE)"),
    (152, Note, "deep learning engine memory fault"),
    (153, Note, "deep learning engine timeout"),
    (154, Recovery, "the driver changed what the GPU needs"),
    (155, Reset, "NVLink error found by software"),
    (156, Reset, "a part of the GPU was retired"),
    (157, Note, "a part of the GPU could not be retired"),
    (158, Reset, "fatal timeout"),
    (160, Reboot, "a memory channel was retired"),
    (161, Note, "a memory channel could not be retired"),
    (162, Reset, "power smoothing changed"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(class: Class) -> Vec<u32> {
        TABLE.iter().filter(|(_, of, _)| *of == class).map(|(number, ..)| *number).collect()
    }

    /// The search needs the order; a number that stood twice would have two meanings.
    #[test]
    fn each_number_stands_once_and_in_order() {
        assert!(TABLE.is_sorted_by(|a, b| a.0 < b.0));
        assert!(TABLE.iter().all(|(_, class, name)| *class != Class::Unknown && !name.is_empty()));
    }

    #[test]
    fn each_class_has_the_catalogues_numbers() {
        assert_eq!(numbers(Reboot), [79, 160]);
        assert_eq!(
            numbers(Reset),
            [46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158, 162]
        );
        assert_eq!(numbers(NvLink), [74, 144, 145, 146, 147, 148, 149, 150]);
        let ranges = [
            8..=8,
            11..=11,
            13..=13,
            25..=25,
            31..=32,
            39..=41,
            60..=60,
            68..=72,
            75..=77,
            80..=80,
            82..=86,
            88..=89,
            94..=94,
            96..=105,
            126..=135,
            139..=139,
        ];
        assert_eq!(numbers(Application), ranges.into_iter().flatten().collect::<Vec<u32>>());
        assert_eq!(
            numbers(Note),
            [
                14, 37, 38, 43, 44, 45, 63, 66, 67, 92, 93, 106, 107, 121, 137, 141, 152, 153, 157,
                161
            ]
        );
        assert_eq!(numbers(Recovery), [154]);
    }

    #[test]
    fn an_unknown_number_is_said_to_be_unknown() {
        let xid = Xid::of(999);
        assert_eq!((xid.class, xid.name), (Class::Unknown, None));
        assert_eq!(xid.to_string(), "Xid 999 (not in our table)");
        assert_eq!(Xid::of(79).to_string(), "Xid 79 (the GPU has fallen off the bus)");
        assert!(Xid::of(92).tells_wear() && !Xid::of(94).tells_wear());
    }
}
