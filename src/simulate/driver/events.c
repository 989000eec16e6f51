/*
 * Event sets. A set remembers what it registered for and how far it has read; the events are the state file's.
 */
#include "state.h"
#include <stdlib.h>
#include <string.h>

#define SETS_MAX 64
#define REGISTRATIONS_MAX 256

static const struct { const char *name; wide bits; } event_types[] = {
    {"sbe", 0x1},      {"dbe", 0x2},       {"pstate", 0x4},         {"xid", 0x8},       {"clock", 0x10},
    {"power", 0x80},   {"mig", 0x100},     {"storm", 0x200},        {"retired", 0x400}, {"retire_failed", 0x800},
    {"nonfatal", 0x1000}, {"poison", 0x2000}, {"unavailable", 0x4000}, {"recovery", 0x8000},
};
#define ALL_EVENTS 0xff9full

/* What was asked for: types of one GPU, in events behind `since`. */
struct registration { int gpu; wide types, since; };

struct set {
    int used;
    /* Tells a set from those that had its place before. */
    unsigned int life;
    wide last;
    struct registration registrations[REGISTRATIONS_MAX];
    int count;
};

/* Guarded by `sets_lock`. */
static struct set sets[SETS_MAX];
static pthread_mutex_t sets_lock = PTHREAD_MUTEX_INITIALIZER;

static struct set *set_of(event_set handle) {
    uintptr_t value = (uintptr_t)handle, place = (value & 0xff) - 1;
    if (place >= SETS_MAX || !sets[place].used || sets[place].life != (unsigned int)(value >> 8)) return NULL;
    return &sets[place];
}

static wide bits_of(const char *type) {
    wide bits = 0;
    if (!type) return 0;
    if (strncmp(type, "other:", 6) == 0) return number_of(type + 6, &bits) ? bits : 0;
    for (size_t i = 0; i < sizeof event_types / sizeof *event_types; i++)
        if (strcmp(type, event_types[i].name) == 0) return event_types[i].bits;
    return 0;
}

static wide newest(const struct state *state) {
    wide last = 0;
    const struct things *events = &state->things[KIND_event];
    for (int i = 0; i < events->count; i++)
        if (events->items[i].index > last) last = events->items[i].index;
    return last;
}

answer nvmlEventSetCreate(event_set *out) {
    answer code = OUT_OF_MEMORY;
    VISIT_SYSTEM;
    if (!out) return INVALID_ARGUMENT;
    pthread_mutex_lock(&sets_lock);
    for (uintptr_t place = 0; place < SETS_MAX; place++) {
        struct set *set = &sets[place];
        if (set->used) continue;
        unsigned int life = set->life + 1;
        memset(set, 0, sizeof *set);
        set->used = 1;
        set->life = life;
        *out = (event_set)((uintptr_t)life << 8 | (place + 1));
        code = OK;
        break;
    }
    pthread_mutex_unlock(&sets_lock);
    return code;
}

answer nvmlEventSetFree(event_set handle) {
    VISIT_SYSTEM;
    pthread_mutex_lock(&sets_lock);
    struct set *set = set_of(handle);
    if (set) set->used = 0;
    pthread_mutex_unlock(&sets_lock);
    return set ? OK : INVALID_ARGUMENT;
}

static wide supported(const struct thing *card) {
    return card->has[NUMBER_events] ? card->number[NUMBER_events] : ALL_EVENTS;
}

answer nvmlDeviceGetSupportedEventTypes(device device, wide *out) {
    VISIT_GPU(device);
    *out = supported(visit.thing);
    return OK;
}

answer nvmlDeviceRegisterEvents(device device, wide types, event_set handle) {
    answer code = OK;
    VISIT_GPU(device);
    if (types & ~supported(visit.thing)) return NOT_SUPPORTED;
    wide since = newest(visit.state);
    pthread_mutex_lock(&sets_lock);
    struct set *set = set_of(handle);
    if (!set)
        code = INVALID_ARGUMENT;
    else if (set->count == REGISTRATIONS_MAX)
        code = OUT_OF_MEMORY;
    else
        set->registrations[set->count++] = (struct registration){visit.gpu, types, since};
    pthread_mutex_unlock(&sets_lock);
    return code;
}

static int wanted(const struct set *set, const struct thing *event) {
    wide bits = bits_of(event->text[TEXT_type]);
    for (int i = 0; i < set->count; i++) {
        const struct registration *one = &set->registrations[i];
        /* An event about no device goes to all who want its type. */
        if ((event->gpu == NOBODY || one->gpu == event->gpu) && one->types & bits && event->index > one->since)
            return 1;
    }
    return 0;
}

/* The next event for the set, if there is one; it is then behind it. */
static answer next_event(const struct state *state, event_set handle, struct event *out) {
    const struct thing *next = NULL;
    const struct things *events = &state->things[KIND_event];
    pthread_mutex_lock(&sets_lock);
    struct set *set = set_of(handle);
    for (int i = 0; set && i < events->count; i++) {
        const struct thing *event = &events->items[i];
        if (event->index > set->last && (!next || event->index < next->index) && wanted(set, event)) next = event;
    }
    if (next) set->last = next->index;
    pthread_mutex_unlock(&sets_lock);
    if (!set) return INVALID_ARGUMENT;
    if (!next) return TIMED_OUT;
    *out = (struct event){
        .device = next->gpu == NOBODY ? NULL : gpu_handle(next->gpu),
        .type = bits_of(next->text[TEXT_type]),
        .data = next->number[NUMBER_data],
        .gpu_instance = instance(next, NUMBER_gi),
        .compute_instance = instance(next, NUMBER_ci),
    };
    return OK;
}

static answer wait_event(const char *call, event_set handle, unsigned int timeout_ms, struct event *out) {
    const long long slice_ns = 2000000;
    VISIT;
    TRY(enter_system(&visit, call));
    long long end_ns = clock_ns(CLOCK_MONOTONIC) + (long long)timeout_ms * 1000000;
    for (;;) {
        if (visit.state->lost_events) return GPU_IS_LOST;
        answer code = next_event(visit.state, handle, out);
        if (code != TIMED_OUT) return code;
        long long left_ns = end_ns - clock_ns(CLOCK_MONOTONIC);
        if (left_ns <= 0) return TIMED_OUT;
        rest_us((long)((left_ns < slice_ns ? left_ns : slice_ns) / 1000) + 1);
        if (!renew(&visit)) return OUT_OF_MEMORY;
        TRY(verdict(visit.state, call, NOBODY));
    }
}

answer nvmlEventSetWait_v2(event_set set, struct event *out, unsigned int timeout_ms) {
    return out ? wait_event(__func__, set, timeout_ms, out) : INVALID_ARGUMENT;
}

answer nvmlEventSetWait(event_set set, struct event_v1 *out, unsigned int timeout_ms) {
    struct event event;
    if (!out) return INVALID_ARGUMENT;
    TRY(wait_event(__func__, set, timeout_ms, &event));
    *out = (struct event_v1){event.device, event.type, event.data};
    return OK;
}
