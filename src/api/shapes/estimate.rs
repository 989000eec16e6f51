//! How large a request is, for an estimate where nobody can count it.

use serde_json::Value;

/// What one image is estimated at, in tokens: a picture of 336 pixels in patches of 14, as the first widely
/// used vision models cut them (24 x 24). What a model really takes, only its own processor knows: 64 to
/// some thousands.
pub const IMAGE_TOKENS: u64 = 576;

/// Bytes of text and number of images in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of the JSON, less images and sounds.
    pub text_bytes: usize,
    /// Images.
    pub images: u64,
}

impl Weight {
    /// The bytes that an estimate of a token for every four is made from, images and all.
    pub fn bytes(self) -> usize {
        let images = usize::try_from(self.images.saturating_mul(4 * IMAGE_TOKENS));
        self.text_bytes.saturating_add(images.unwrap_or(usize::MAX))
    }
}

/// Weighs a value. The data of images, sounds and files is no text, however many bytes it has.
pub fn weigh(value: &Value) -> Weight {
    let mut weight = Weight::default();
    add(value, &mut weight);
    weight
}

fn add(value: &Value, weight: &mut Weight) {
    match value {
        Value::Null | Value::Bool(_) => weight.text_bytes += 4,
        Value::Number(number) => weight.text_bytes += number.to_string().len(),
        Value::String(text) => weight.text_bytes += text.len() + 2,
        Value::Array(items) => items.iter().for_each(|item| add_item(item, weight)),
        Value::Object(fields) => {
            if let Some(kind) = fields.get("type").and_then(Value::as_str)
                && is_media(kind)
            {
                weight.images += u64::from(kind.contains("image"));
                return;
            }
            for (key, value) in fields {
                weight.text_bytes += key.len() + 4;
                add(value, weight);
            }
        }
    }
}

fn add_item(item: &Value, weight: &mut Weight) {
    weight.text_bytes += 1;
    add(item, weight);
}

/// Kinds of part whose content is no text.
fn is_media(kind: &str) -> bool {
    const MEDIA: [&str; 12] = [
        "image",
        "image_url",
        "input_image",
        "input_audio",
        "audio_url",
        "video_url",
        "input_video",
        "file",
        "input_file",
        "image_pil",
        "image_embeds",
        "document",
    ];
    MEDIA.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_image_weighs_the_same_however_large_its_data_is() {
        let with = |data: &str| {
            weigh(&json!([{"role": "user", "content": [
                {"type": "image", "source": {"type": "base64", "data": data}},
                {"type": "text", "text": "what is this?"}]}]))
        };
        let (small, large) = (with("a"), with(&"a".repeat(1 << 20)));
        assert_eq!(small, large);
        assert_eq!(small.images, 1);
        let bare = weigh(
            &json!([{"role": "user", "content": [{"type": "text", "text": "what is this?"}]}]),
        );
        assert_eq!(bare.images, 0);
        assert!(small.bytes() >= bare.bytes() + 4 * 576, "an image costs something");
        assert!(small.text_bytes - bare.text_bytes < 8);
    }
}
