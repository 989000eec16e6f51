/*
 * The present state: read again when the file changed, shared by all threads, and the energy that flowed
 * meanwhile.
 */
#include "state.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A file younger than this may be changed again without showing it: clocks of files are coarse. */
#define YOUNG_NS 20000000ll

/* Guards everything below it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct state *present;
static struct stat seen;
/* Whether `seen` is sure to show the next change. */
static int settled;
static char state_path[4096];

/* Energy of GPUs with energy=auto: what flowed until `at`, and what has flowed since then. */
static struct {
    double energy_mj, power_mw;
    wide epoch;
    long long at_ns;
    int automatic;
} meters[GPUS_MAX];

static long long clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static long long changed_ns(const struct stat *file) {
    return file->st_mtim.tv_sec * 1000000000ll + file->st_mtim.tv_nsec;
}

static void beside(const char *name, char *path, size_t room) {
    Dl_info info;
    path[0] = 0;
    if (!dladdr((void *)&beside, &info) || !info.dli_fname) return;
    const char *slash = strrchr(info.dli_fname, '/');
    int length = slash ? (int)(slash - info.dli_fname) : 1;
    snprintf(path, room, "%.*s/%s", length, slash ? info.dli_fname : ".", name);
}

static struct thing *thing_of(const struct state *state, enum kind kind, int gpu, wide index) {
    const struct things *things = &state->things[kind];
    for (int i = 0; i < things->count; i++)
        if (things->items[i].gpu == gpu && things->items[i].index == index) return &things->items[i];
    return NULL;
}

/* === Energy === */

static void settle(int gpu, long long now_ns) {
    if (now_ns <= meters[gpu].at_ns) return;
    if (meters[gpu].automatic)
        meters[gpu].energy_mj += meters[gpu].power_mw * (double)(now_ns - meters[gpu].at_ns) / 1e9;
    meters[gpu].at_ns = now_ns;
}

/* The cards draw from `at_ns` on what the next state says. */
static void meter(const struct state *next, long long at_ns) {
    unsigned char here[GPUS_MAX] = {0};
    for (int gpu = 0; gpu < GPUS_MAX; gpu++) settle(gpu, at_ns);
    for (int i = 0; i < next->things[KIND_gpu].count; i++) {
        const struct thing *card = &next->things[KIND_gpu].items[i];
        if (here[card->gpu]) continue;
        here[card->gpu] = 1;
        const char *energy = card->text[TEXT_energy];
        meters[card->gpu].automatic = energy && strcmp(energy, "auto") == 0;
        meters[card->gpu].power_mw = (double)card->number[NUMBER_power_mw];
        if (meters[card->gpu].epoch != card->number[NUMBER_energy_epoch]) {
            meters[card->gpu].epoch = card->number[NUMBER_energy_epoch];
            meters[card->gpu].energy_mj = 0;
        }
    }
    for (int gpu = 0; gpu < GPUS_MAX; gpu++)
        if (!here[gpu]) meters[gpu].automatic = 0;
}

static wide flowed_mj(int gpu) {
    pthread_mutex_lock(&lock);
    settle(gpu, clock_ns(CLOCK_MONOTONIC));
    wide energy = (wide)meters[gpu].energy_mj;
    pthread_mutex_unlock(&lock);
    return energy;
}

__attribute__((constructor)) static void loaded(void) {
    long long now_ns = clock_ns(CLOCK_MONOTONIC);
    for (int gpu = 0; gpu < GPUS_MAX; gpu++) meters[gpu].at_ns = now_ns;
}

/* === The file === */

static int open_state(void) {
    const char *named = getenv("BERTHD_FAKE_NVML");
    if (!state_path[0]) beside("state", state_path, sizeof state_path);
    int file = open(state_path, O_RDONLY | O_CLOEXEC);
    return file >= 0 || !named ? file : open(named, O_RDONLY | O_CLOEXEC);
}

static int stat_state(struct stat *found) {
    const char *named = getenv("BERTHD_FAKE_NVML");
    if (!state_path[0]) beside("state", state_path, sizeof state_path);
    memset(found, 0, sizeof *found);
    return stat(state_path, found) == 0 || (named && stat(named, found) == 0);
}

static char *read_all(int file, size_t *length) {
    size_t room = 16384;
    ssize_t more = 0;
    char *bytes = malloc(room);
    for (*length = 0; bytes && *length < FILE_MAX_BYTES; *length += (size_t)more) {
        if (*length + 1 == room) {
            char *larger = realloc(bytes, room *= 2);
            if (!larger) break;
            bytes = larger;
        }
        more = read(file, bytes + *length, room - *length - 1);
        if (more <= 0) break;
    }
    if (bytes) bytes[*length] = 0;
    return bytes;
}

static int same_file(const struct stat *a, const struct stat *b) {
    return a->st_ino == b->st_ino && a->st_size == b->st_size && changed_ns(a) == changed_ns(b) &&
           a->st_dev == b->st_dev;
}

static void leave(struct state *state) {
    pthread_mutex_lock(&lock);
    if (state && --state->users == 0) forget(state);
    pthread_mutex_unlock(&lock);
}

/* Takes a state that was read into use. The lock is held. */
static void adopt(struct state *next, const struct stat *file) {
    long long now_ns = clock_ns(CLOCK_MONOTONIC), age_ns = clock_ns(CLOCK_REALTIME) - changed_ns(file);
    /* A file that lay there before the library was loaded has been true all the time. */
    meter(next, file->st_ino && age_ns > 0 && age_ns < now_ns ? now_ns - age_ns : now_ns);
    if (present && --present->users == 0) forget(present);
    present = next;
    present->users = 1;
    seen = *file;
    settled = age_ns > YOUNG_NS || !file->st_ino;
}

/* The present state; give it back with `leave`. Null only without memory. */
static struct state *look(void) {
    struct stat found;
    pthread_mutex_lock(&lock);
    stat_state(&found);
    if (!present || !settled || !same_file(&found, &seen)) {
        size_t length = 0;
        int file = open_state();
        memset(&found, 0, sizeof found);
        char *bytes = NULL;
        if (file >= 0) {
            if (fstat(file, &found) != 0) memset(&found, 0, sizeof found);
            bytes = read_all(file, &length);
            close(file);
        }
        struct state *next = parse(bytes);
        if (next) adopt(next, &found);
    }
    struct state *state = present;
    if (state) state->users++;
    pthread_mutex_unlock(&lock);
    return state;
}
