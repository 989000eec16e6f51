//! Letters that look like others, or that are only another dress of them, and that no normal form joins.

/// The plain letter that a decorated one shows.
pub(super) fn shown_as(ch: char) -> Option<char> {
    let (first, at) = match u32::from(ch) {
        // Invisible tags, which hide plain text in a string.
        at @ 0xE0020..=0xE007E => (0x20, at - 0xE0020),
        // White on black, in circles and squares; and flags, two letters each.
        at @ 0x1F150..=0x1F169 => (0x61, at - 0x1F150),
        at @ 0x1F170..=0x1F189 => (0x61, at - 0x1F170),
        at @ 0x1F1E6..=0x1F1FF => (0x61, at - 0x1F1E6),
        _ => return None,
    };
    char::from_u32(first + at)
}

/// The Latin letters that a lower case letter is written as, or can't be told from. Both sides of a
/// comparison go through it, so that nothing is lost for those who write in the other script.
pub(super) fn spelled(lower: char) -> Option<&'static str> {
    Some(match lower {
        'ß' => "ss",
        'æ' | 'ǽ' => "ae",
        'œ' => "oe",
        'þ' => "th",
        'а' | 'α' | 'ɑ' | 'ᴀ' => "a",
        'в' | 'ʙ' => "b",
        'с' | 'ᴄ' | 'ϲ' => "c",
        'ԁ' | 'ᴅ' | 'đ' | 'ð' | 'ɖ' => "d",
        'е' | 'ε' | 'ᴇ' | 'є' => "e",
        'ꜰ' => "f",
        'ɡ' | 'ɢ' => "g",
        'н' | 'һ' | 'ʜ' | 'ħ' => "h",
        'і' | 'ι' | 'ı' | 'ɩ' | 'ɪ' => "i",
        'ј' | 'ᴊ' => "j",
        'к' | 'κ' | 'ᴋ' => "k",
        'ʟ' | 'ӏ' | 'ł' => "l",
        'м' | 'ᴍ' => "m",
        'ɴ' | 'ո' | 'ŋ' => "n",
        'о' | 'ο' | 'ᴏ' | 'օ' | 'ø' => "o",
        'р' | 'ρ' | 'ᴘ' => "p",
        'ԛ' => "q",
        'ʀ' => "r",
        'ѕ' | 'ꜱ' => "s",
        'т' | 'τ' | 'ᴛ' => "t",
        'υ' | 'ᴜ' | 'ս' => "u",
        'ν' | 'ᴠ' | 'ѵ' => "v",
        'ԝ' | 'ᴡ' => "w",
        'х' | 'χ' => "x",
        'у' | 'ʏ' => "y",
        'ᴢ' => "z",
        _ => return None,
    })
}
