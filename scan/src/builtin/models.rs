//! Models.

use super::{Rule, rule};
use crate::check::Check::{Entropy, Mixed};

pub(super) const RULES: &[Rule] = &[
    rule(
        "anthropic-api-key",
        &["sk-ant-"],
        r"\bsk-ant-(?:api|admin|oat|ort)[0-9]{2}-[A-Za-z0-9_-]{80,128}",
        Entropy(4.0),
    ),
    rule(
        "openai-api-key",
        &["sk-"],
        r"\bsk-(?:(?:proj|svcacct|admin)-)?[A-Za-z0-9_-]{20,80}T3BlbkFJ[A-Za-z0-9_-]{20,80}",
        Entropy(3.5),
    ),
    rule("huggingface-access-token", &["hf_"], r"\bhf_[A-Za-z]{34}\b", Entropy(3.5)),
    rule("groq-api-key", &["gsk_"], r"\bgsk_[A-Za-z0-9]{52}\b", Entropy(4.0)),
    rule("replicate-api-token", &["r8_"], r"\br8_[A-Za-z0-9]{37}\b", Entropy(3.5)),
    rule("perplexity-api-key", &["pplx-"], r"\bpplx-[A-Za-z0-9]{48}\b", Entropy(4.0)),
    rule("xai-api-key", &["xai-"], r"\bxai-[A-Za-z0-9]{70,90}\b", Entropy(4.0)),
    rule("openrouter-api-key", &["sk-or-v1-"], r"\bsk-or-v1-[a-f0-9]{64}\b", Entropy(3.0)),
    rule("deepseek-api-key", &["sk-"], r"\bsk-[a-f0-9]{32}\b", Entropy(3.0)).alone(),
    rule("langsmith-api-key", &["lsv2_"], r"\blsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{10}\b", Entropy(3.0)),
    rule("nvidia-api-key", &["nvapi-"], r"\bnvapi-[A-Za-z0-9_-]{60,70}", Entropy(4.0)),
    rule("together-api-key", &["tgp_v1_"], r"\btgp_v1_[A-Za-z0-9_-]{43}", Entropy(4.0)),
    rule("fireworks-api-key", &["fw_"], r"\bfw_[A-Za-z0-9]{22,24}\b", Mixed).alone(),
    rule("pinecone-api-key", &["pcsk_"], r"\bpcsk_[A-Za-z0-9]{5,6}_[A-Za-z0-9]{63}\b", Entropy(4.0)),
];
