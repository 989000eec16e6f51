//! What the steps behind the study ask of an understood request: does it fit, what may it become, how is it watched.

use super::*;

impl Studied {
    /// Refuses at once what can never fit, with both numbers. Gives the context window, if it is known.
    pub(in crate::pipeline) fn check_window(
        &self,
        counted: Counted,
    ) -> Result<Option<Tokens>, Refusal> {
        let Some(window) = self.window() else { return Ok(None) };
        // Several prompts in one request are each its own sequence; their sum says nothing.
        if self.prompts > 1 {
            return Ok(Some(window));
        }
        if self.span(counted) <= window {
            return Ok(Some(window));
        }
        let param = match self.route {
            Route::Chat => "messages",
            Route::Completions => "prompt",
            Route::Embeddings => "input",
        };
        let about = if counted.source == Source::Estimate { "about " } else { "" };
        let asked = match self.max_tokens {
            Some(most) => {
                format!(" and {most} more are asked for, {} in all", counted.tokens.plus(most))
            }
            None => String::new(),
        };
        let text = format!(
            "This model's maximum context length is {window} tokens. The input has {about}{} tokens{asked}. Shorten the input or lower max_tokens.",
            counted.tokens
        );
        Err(Refusal::new(Reason::ContextTooLong, text).param(param))
    }

    /// Writes the prompt's blocks to the log. Their hashes tell nothing of the text but what it shares.
    pub(in crate::pipeline) fn log_prefix(&self, id: &RequestId) {
        let Some(prefix) = &self.prefix else { return };
        tracing::debug!(
            request = id.as_str(),
            block_tokens = prefix.block_tokens,
            blocks = prefix.hashes.len(),
            last = prefix.hashes.last().map(|hash| format!("{hash:016x}")),
            "prefix blocks"
        );
    }

    /// What its prompt begins with, for the rules.
    pub(in crate::pipeline) fn blocks(&self) -> Blocks {
        let blocks = |prefix: &PrefixBlocks| Blocks {
            hashes: prefix.hashes.as_slice().into(),
            tokens: prefix.block_tokens.get(),
        };
        // Of several prompts no one is what the server's cache would be asked for.
        self.prefix.as_ref().filter(|_| self.prompts == 1).map(blocks).unwrap_or_default()
    }

    /// Its caller wants a stream.
    pub(in crate::pipeline) const fn is_stream(&self) -> bool {
        self.stream
    }

    /// Sequences that it runs at once on a server.
    pub(in crate::pipeline) fn sequences(&self) -> u32 {
        u32::try_from(self.answers).unwrap_or(u32::MAX)
    }

    /// Tokens that one sequence of it may come to hold, as far as that is sure: a server whose window is
    /// smaller cannot take it.
    pub(in crate::pipeline) fn span(&self, counted: Counted) -> Tokens {
        if self.prompts > 1 {
            return Tokens::ZERO;
        }
        let least = Tokens(u64::from(self.route != Route::Embeddings));
        sure_input(counted).plus(self.max_tokens.unwrap_or(least))
    }

    /// What the answers are expected to take: the model's running mean for each, never more than the
    /// caller allows or the window leaves.
    pub(in crate::pipeline) fn expected_output(
        &self,
        counted: Counted,
        window: Option<Tokens>,
        mean: Tokens,
    ) -> Tokens {
        if self.route == Route::Embeddings {
            return Tokens::ZERO;
        }
        let wanted = self.max_tokens.map_or(mean, |most| most.min(mean));
        let one = window.map_or(wanted, |window| wanted.min(window.less(counted.tokens)));
        Tokens(one.get().saturating_mul(self.answers))
    }

    /// The context window, as its servers or its files tell it; found files only if they are believed.
    pub(in crate::pipeline) fn window(&self) -> Option<Tokens> {
        let counter = self.counter.as_ref().filter(|counter| self.believed || !counter.is_found());
        let of_files = || counter.and_then(|counter| counter.files().context_window());
        self.entry.context_window.or_else(of_files)
    }

    /// Our own count, to be compared with the server's.
    pub(in crate::pipeline) fn shadow(&self) -> Option<Shadow> {
        let (counter, Ok(tokens)) = (self.counter.as_ref()?, self.local.as_ref()?) else {
            return None;
        };
        self.comparable.then(|| Shadow {
            counter: Arc::clone(counter),
            route: self.route,
            tokens: *tokens,
            body_bytes: self.outgoing.len(),
        })
    }

    /// How its answers are watched, where they are.
    pub(in crate::pipeline) fn guard(&self, live: &Live, tenant: &Tenant) -> Option<Arc<Plan>> {
        let policy = live.settings.screen.policy(&tenant.name, &self.entry.model);
        let watched = policy.output.watch != Watch::Off && self.route != Route::Embeddings;
        let plan = || {
            let screening = Arc::clone(&live.screening);
            let secretive = self.secretive.clone();
            let owner = Owner::of(tenant.name.as_str());
            Arc::new(Plan::new(screening, policy.output.clone(), secretive, self.json, owner))
        };
        watched.then(plan)
    }

    /// What the window leaves for each choice. An estimate of the input may be far too high, and of
    /// several prompts only the sum is known: then it is the whole window.
    pub(in crate::pipeline) fn ceiling(&self, counted: Counted) -> Option<Tokens> {
        let sure = counted.source != Source::Estimate && self.prompts == 1;
        let input = if sure { counted.tokens } else { Tokens::ZERO };
        self.window().map(|window| window.less(input).max(Tokens(1)))
    }

    /// What the relay needs.
    pub(in crate::pipeline) fn job(
        self,
        relay: config::Relay,
        limits: config::Limits,
        counted: Counted,
    ) -> Job {
        let wishes = Wishes {
            ceiling: self.ceiling(counted),
            alias: self.alias,
            include_usage: self.include_usage,
            max_tokens: self.max_tokens,
            // Bounded: `Request::parse` refuses more than `ANSWERS_MAX`.
            choices: usize::try_from(self.answers).unwrap_or(usize::MAX),
            wanted: usize::try_from(self.wanted).unwrap_or(usize::MAX),
            prompt: counted.tokens,
            exact: counted.source != Source::Estimate,
            // Nor may files that are in doubt cut an answer.
            counter: self.counter.filter(|_| self.believed),
        };
        Job {
            route: self.route,
            stream: self.stream,
            body: self.outgoing,
            ids_body: self.ids_body,
            relay,
            content_by: None,
            tier: Tier::Standard,
            limits,
            wishes,
            guard: None,
        }
    }
}

/// Input tokens that are beyond doubt: an estimate may be far off in either direction, and only what is
/// sure may refuse a request.
fn sure_input(counted: Counted) -> Tokens {
    match counted.source {
        Source::Estimate => Tokens(counted.tokens.get() / 4),
        Source::Exact | Source::Server => counted.tokens,
    }
}
