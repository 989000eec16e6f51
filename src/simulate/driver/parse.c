/*
 * From the file's bytes to a `struct state`. The bytes are cut up in place and kept.
 */
#include "state.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define AS_NAME(name) #name,
static const char *const number_names[] = {NUMBERS(AS_NAME)};
static const char *const text_names[] = {TEXTS(AS_NAME)};
static const char *const kind_names[] = {"gpu", "mig", "link", "proc", "event"};
static const char *const verb_names[] = {"return", "hang", "slow"};

static int named(const char *name, const char *const *names, int count) {
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

/* One more item of a list that grows by doubling, or null when it is full. */
static void *grown(void *items, int count, int *room, size_t size) {
    if (count < *room) return items;
    if (count >= LINES_MAX) return NULL;
    int more = *room ? *room * 2 : 16;
    void *larger = realloc(items, (size_t)more * size);
    if (larger) *room = more;
    return larger;
}

/* The next word of a line, ended by a zero; spaces inside double quotes belong to it. Null at the end. */
static char *word(char **line) {
    char *at = *line + strspn(*line, " \t");
    if (!*at) return NULL;
    char *start = at;
    for (int quoted = 0; *at && (quoted || !isspace((unsigned char)*at)); at++)
        if (*at == '"') quoted = !quoted;
    if (*at) *at++ = 0;
    *line = at;
    return start;
}

/* The value behind `=` in a word, without its quotes; the word is cut there. Null where there is none. */
static char *value_of(char *pair) {
    char *value = strchr(pair, '=');
    if (!value) return NULL;
    *value++ = 0;
    if (*value == '"') {
        value++;
        value[strcspn(value, "\"")] = 0;
    }
    return value;
}

static int number_of(const char *text, wide *number) {
    char *end;
    int hexadecimal = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    *number = strtoull(text, &end, hexadecimal ? 16 : 10);
    return end != text;
}

static int small(const char *word, int limit) {
    wide number;
    return word && isdigit((unsigned char)*word) && number_of(word, &number) && number < (wide)limit
               ? (int)number
               : -1;
}

/* Microseconds: `2ms`, `150us`, `3s`; without a unit milliseconds. */
static long duration_of(const char *text) {
    char *unit;
    double number = strtod(text, &unit);
    if (strncmp(unit, "us", 2) == 0) return (long)number;
    if (*unit == 's') return (long)(number * 1e6);
    return (long)(number * 1e3);
}

static void parse_thing(struct state *state, enum kind kind, char *rest) {
    struct things *things = &state->things[kind];
    struct thing thing = {.gpu = -1};
    char *pair;
    if (kind == KIND_event) {
        if (!(pair = word(&rest)) || !number_of(pair, &thing.index)) return;
    } else {
        if ((thing.gpu = small(word(&rest), GPUS_MAX)) < 0) return;
        if (kind == KIND_mig || kind == KIND_link) {
            int index = small(word(&rest), 64);
            if (index < 0) return;
            thing.index = (wide)index;
        }
    }
    while ((pair = word(&rest))) {
        char *value = value_of(pair);
        int at;
        if (!value) continue;
        if ((at = named(pair, text_names, TEXT_COUNT)) >= 0)
            thing.text[at] = value;
        else if ((at = named(pair, number_names, NUMBER_COUNT)) >= 0)
            thing.has[at] = (unsigned char)number_of(value, &thing.number[at]);
    }
    if (kind == KIND_event && thing.text[TEXT_gpu]) thing.gpu = small(thing.text[TEXT_gpu], GPUS_MAX);
    struct thing *items = grown(things->items, things->count, &things->room, sizeof thing);
    if (!items) return;
    things->items = items;
    items[things->count++] = thing;
}

/* `return nvmlDeviceGetTemperature@1=3` */
static void parse_rule(struct state *state, enum verb verb, char *rest) {
    char *call = word(&rest), *value = call ? value_of(call) : NULL;
    if (!value) return;
    struct rule rule = {.verb = verb, .call = call, .gpu = -1};
    char *at = strchr(call, '@');
    if (at) {
        *at = 0;
        if ((rule.gpu = small(at + 1, GPUS_MAX)) < 0) return;
    }
    rule.value = verb == VERB_return ? atol(value) : duration_of(value);
    struct rule *rules = grown(state->rules, state->rule_count, &state->rule_room, sizeof rule);
    if (!rules) return;
    state->rules = rules;
    rules[state->rule_count++] = rule;
}

static void parse_line(struct state *state, char *line) {
    char *first = word(&line);
    if (!first || *first == '#') return;
    int at, gpu;
    if ((at = named(first, kind_names, KIND_COUNT)) >= 0) return parse_thing(state, (enum kind)at, line);
    if ((at = named(first, verb_names, VERB_COUNT)) >= 0) return parse_rule(state, (enum verb)at, line);
    if (strcmp(first, "unloaded") == 0) state->unloaded = 1;
    if (strcmp(first, "mismatch") == 0) state->mismatch = 1;
    if (strcmp(first, "lost_events") == 0) state->lost_events = 1;
    if (strcmp(first, "log_calls") == 0) state->log_calls = 1;
    if (strcmp(first, "lost") == 0 && (gpu = small(word(&line), GPUS_MAX)) >= 0) state->lost[gpu] = 1;
    if (strcmp(first, "no_processes") == 0 && (gpu = small(word(&line), GPUS_MAX)) >= 0)
        state->no_processes[gpu] = 1;
    char *value = value_of(first);
    if (!value) return;
    if (strcmp(first, "driver") == 0) state->driver = value;
    if (strcmp(first, "nvml") == 0) state->nvml = value;
    if (strcmp(first, "cuda") == 0) state->cuda = value;
    if (strcmp(first, "count") == 0) state->count = atoi(value);
}

/* Takes the bytes, which end with a zero; they may be null for a file that is not there. */
static struct state *parse(char *bytes) {
    struct state *state = calloc(1, sizeof *state);
    if (!state) {
        free(bytes);
        return NULL;
    }
    state->bytes = bytes;
    state->count = -1;
    char *rest = bytes, *line;
    while (rest && (line = strsep(&rest, "\n"))) {
        line[strcspn(line, "\r")] = 0;
        parse_line(state, line);
    }
    if (state->count < 0) state->count = state->things[KIND_gpu].count;
    return state;
}

static void forget(struct state *state) {
    for (int kind = 0; kind < KIND_COUNT; kind++) free(state->things[kind].items);
    free(state->rules);
    free(state->bytes);
    free(state);
}
