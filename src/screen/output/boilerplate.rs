//! Words that many system prompts and many answers have in common. That they are repeated gives nothing away.
//!
//! Own list: the published default prompts of well-known models, and rows that everyone writes alike.

use super::{secretive::add_text, shingles::Table};
use std::sync::OnceLock;

/// Lengths of windows that can be asked for.
const LENGTHS: usize = 17;

const PHRASES: [&str; 18] = [
    "You are a helpful, harmless, and honest AI assistant. How can I help you today?",
    "You are a helpful AI assistant. Answer the user's questions to the best of your ability.",
    "You are a helpful assistant. Please answer the following question.",
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being \
     safe. Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal \
     content. Please ensure that your responses are socially unbiased and positive in nature.",
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering \
     something not correct. If you don't know the answer to a question, please don't share false information.",
    "You are ChatGPT, a large language model trained by OpenAI, based on the GPT-4 architecture.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are Claude, an AI assistant made by Anthropic. I am Claude, an AI assistant made by Anthropic.",
    "You are a large language model trained by Google. I am a large language model, trained by Google.",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
     detailed, and polite answers to the user's questions.",
    "As an AI language model, I don't have personal opinions or feelings. I am an artificial intelligence.",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the \
     answer. Let's think step by step.",
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday, Monday",
    "January, February, March, April, May, June, July, August, September, October, November, December, January",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen",
    "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
    "你是一个乐于助人的人工智能助手。请用中文回答用户的问题。",
];

/// The windows of these phrases, each as long as half of `words` words.
pub(super) fn windows(words: usize) -> &'static Table {
    static TABLES: [OnceLock<Table>; LENGTHS] = [const { OnceLock::new() }; LENGTHS];
    static NONE: OnceLock<Table> = OnceLock::new();
    TABLES.get(words).unwrap_or(&NONE).get_or_init(|| {
        let mut table = Table::with_room(8 * PHRASES.iter().map(|text| text.len()).sum::<usize>());
        PHRASES.iter().for_each(|text| add_text(&mut table, text, words, None));
        table
    })
}
