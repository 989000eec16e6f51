/*
 * What every call does first: wait as it is ordered to, fail as it is ordered to, and find the card it is about.
 */
#include "state.h"
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NOBODY (-1)

static atomic_int initialised, hanging;

/* A look at the state for the length of a call. */
struct visit {
    struct state *state;
    int gpu;
    /* The line of the GPU or, behind a MIG handle, of the MIG device. */
    const struct thing *thing;
    int is_mig;
};

static void end_visit(struct visit *visit) {
    if (visit->state) leave(visit->state);
    visit->state = NULL;
}

static void rest_us(long us) {
    struct timespec time = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&time, NULL);
}

/* Looks for an order about `call@gpu`, `call`, `*@gpu` and `*`. */
static int ordered(const struct state *state, enum verb verb, const char *call, int gpu, long *value) {
    const char *names[2] = {call, "*"};
    for (int name = 0; name < 2; name++)
        for (int all = 0; all < 2; all++)
            for (int i = 0; i < state->rule_count; i++) {
                const struct rule *rule = &state->rules[i];
                if (rule->verb != verb || strcmp(rule->call, names[name]) != 0) continue;
                if (all ? rule->gpu != -1 : rule->gpu == -1 || rule->gpu != gpu) continue;
                *value = rule->value;
                return 1;
            }
    return 0;
}

static int renew(struct visit *visit) {
    struct state *now = look();
    end_visit(visit);
    visit->state = now;
    return now != NULL;
}

static void hang(struct visit *visit, const char *call, int gpu) {
    const long slice_us = 5000;
    long limit_us, passed_us = 0;
    if (!ordered(visit->state, VERB_hang, call, gpu, &limit_us)) return;
    char mark[4096];
    beside("hanging", mark, sizeof mark);
    atomic_fetch_add(&hanging, 1);
    int file = open(mark, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    if (file >= 0) close(file);
    while (passed_us < limit_us) {
        rest_us(slice_us);
        passed_us += slice_us;
        if (!renew(visit) || !ordered(visit->state, VERB_hang, call, gpu, &limit_us)) break;
    }
    if (atomic_fetch_sub(&hanging, 1) == 1) unlink(mark);
}

/* Each call is one write, so that those of two threads do not mix. */
static void log_call(const char *call, int gpu) {
    char path[4096], line[128];
    beside("calls", path, sizeof path);
    int length = gpu == NOBODY ? snprintf(line, sizeof line, "%s\n", call)
                               : snprintf(line, sizeof line, "%s@%d\n", call, gpu);
    int file = open(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0) return;
    ssize_t written = write(file, line, (size_t)length);
    (void)written;
    close(file);
}

/* What the state says about the call as a whole. */
static answer verdict(const struct state *state, const char *call, int gpu) {
    long code;
    if (ordered(state, VERB_return, call, gpu, &code)) return (answer)code;
    if (state->unloaded) return DRIVER_NOT_LOADED;
    if (state->mismatch) return LIB_RM_VERSION_MISMATCH;
    if (gpu != NOBODY && gpu < GPUS_MAX && state->lost[gpu]) return GPU_IS_LOST;
    return OK;
}

static answer enter(struct visit *visit, const char *call, int gpu) {
    long slow_us;
    if (!renew(visit)) return OUT_OF_MEMORY;
    if (visit->state->log_calls) log_call(call, gpu);
    hang(visit, call, gpu);
    if (!visit->state) return OUT_OF_MEMORY;
    if (ordered(visit->state, VERB_slow, call, gpu, &slow_us) && slow_us > 0) {
        rest_us(slow_us);
        if (!renew(visit)) return OUT_OF_MEMORY;
    }
    return verdict(visit->state, call, gpu);
}

static answer enter_system(struct visit *visit, const char *call) {
    return atomic_load(&initialised) > 0 ? enter(visit, call, NOBODY) : UNINITIALIZED;
}

/* === Handles: the index plus one; for a MIG device its own index plus one above that === */

static device gpu_handle(int gpu) { return (device)(intptr_t)(gpu + 1); }

static device mig_handle(int gpu, wide mig) {
    return (device)(intptr_t)((gpu + 1) | (intptr_t)(mig + 1) << 16);
}

static int gpu_of(device device) { return (int)((intptr_t)device & 0xffff) - 1; }

static int mig_of(device device) { return (int)((intptr_t)device >> 16) - 1; }

static answer enter_device(struct visit *visit, const char *call, device device) {
    if (atomic_load(&initialised) <= 0) return UNINITIALIZED;
    visit->gpu = gpu_of(device);
    if (visit->gpu < 0 || visit->gpu >= GPUS_MAX) return INVALID_ARGUMENT;
    answer code = enter(visit, call, visit->gpu);
    if (code) return code;
    visit->is_mig = mig_of(device) >= 0;
    visit->thing = visit->is_mig ? thing_of(visit->state, KIND_mig, visit->gpu, (wide)mig_of(device))
                                 : thing_of(visit->state, KIND_gpu, visit->gpu, 0);
    return visit->thing ? OK : INVALID_ARGUMENT;
}

static answer enter_gpu(struct visit *visit, const char *call, device device) {
    answer code = enter_device(visit, call, device);
    return code || !visit->is_mig ? code : NOT_SUPPORTED;
}

#define TRY(code)                     \
    do {                              \
        answer tried = (code);        \
        if (tried) return tried;      \
    } while (0)

#define VISIT struct visit visit __attribute__((cleanup(end_visit))) = {.gpu = NOBODY}
#define VISIT_SYSTEM VISIT; TRY(enter_system(&visit, __func__))
/* Calls that MIG devices answer too, and calls that they do not. */
#define VISIT_DEVICE(device) VISIT; TRY(enter_device(&visit, __func__, device))
#define VISIT_GPU(device) VISIT; TRY(enter_gpu(&visit, __func__, device))

/* === Handing out === */

static answer give(const char *text, char *out, unsigned int room) {
    if (!text) return NOT_SUPPORTED;
    if (!out) return INVALID_ARGUMENT;
    if (strlen(text) >= room) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return OK;
}

static answer give_wide(const struct thing *thing, enum number number, wide *out) {
    if (!out) return INVALID_ARGUMENT;
    if (!thing || !thing->has[number]) return NOT_SUPPORTED;
    *out = thing->number[number];
    return OK;
}

static answer give_narrow(const struct thing *thing, enum number number, unsigned int *out) {
    wide value;
    if (!out) return INVALID_ARGUMENT;
    TRY(give_wide(thing, number, &value));
    *out = (unsigned int)value;
    return OK;
}

/* A call about a GPU that hands out one number. */
#define NUMBER_CALL(name, key)                            \
    answer name(device device, unsigned int *out) {       \
        VISIT_GPU(device);                                \
        return give_narrow(visit.thing, NUMBER_##key, out); \
    }
#define WIDE_CALL(name, key)                              \
    answer name(device device, wide *out) {               \
        VISIT_GPU(device);                                \
        return give_wide(visit.thing, NUMBER_##key, out); \
    }
