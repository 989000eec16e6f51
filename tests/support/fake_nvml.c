/*
 * A stand-in for libnvidia-ml.so.1 that tells what a text file says.
 *
 * The file is `state` in the directory this library lies in; where there is none, the file that the
 * environment variable BERTHD_FAKE_NVML names. It is read anew at every call, so a test (or a person
 * trying the daemon on a machine without GPUs) changes the "hardware" by replacing the file. Replace it
 * by a rename: a call may read at any time. Lines:
 *
 *   driver=580.65.06            driver version
 *   nvml=13.580.65.06           library version
 *   count=2                     number of GPUs; otherwise the `gpu` lines are counted
 *   gpu 0 uuid=GPU-0 name="NVIDIA H200" mem_total=B mem_used=B mem_free=B mem_reserved=B
 *         util=% mem_util=% power_mw=N limit_mw=N temp=C          (one line; what is left out is
 *                                                                  answered "not supported")
 *   no_processes 0              GPU 0 cannot list processes
 *   proc 0 pid=N mem=B kind=compute|graphics name="..."    without mem, the driver does not know it
 *   return nvmlDeviceGetTemperature=3       that call answers with this code
 *   return nvmlDeviceGetTemperature@1=3     only for GPU 1
 *   return *@1=15                           every call about GPU 1
 *   hang nvmlDeviceGetPowerUsage=5000ms     that call takes so long, or until the line is gone; meanwhile
 *                                           a file `hanging` lies beside the library
 *
 * Built with -DOLD_DRIVER it lacks the calls that came after driver 470.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    VERSION_MISMATCH = 25,
};

typedef unsigned int answer;
/* A handle is the index plus one, so that a null handle is none. */
typedef void *device;

struct memory_v1 { unsigned long long total, free, used; };
struct memory_v2 { unsigned int version; unsigned long long total, reserved, free, used; };
struct utilization { unsigned int gpu, memory; };
struct process { unsigned int pid; unsigned long long memory; unsigned int gpu_instance, compute_instance; };

#define NOBODY (-1)
#define LINE_MAX_BYTES 1024

static atomic_int initialised;

/* === The state file === */

static void beside(const char *name, char *path, size_t room) {
    Dl_info info;
    path[0] = 0;
    if (!dladdr((void *)&beside, &info) || !info.dli_fname) return;
    const char *slash = strrchr(info.dli_fname, '/');
    int length = slash ? (int)(slash - info.dli_fname) : 1;
    snprintf(path, room, "%.*s/%s", length, slash ? info.dli_fname : ".", name);
}

static FILE *state(void) {
    char path[4096];
    beside("state", path, sizeof path);
    FILE *file = fopen(path, "r");
    const char *named = getenv("BERTHD_FAKE_NVML");
    return file || !named ? file : fopen(named, "r");
}

/* Whether a line starts so; `gpu 1` is not the start of `gpu 10`. */
static int starts(const char *line, const char *start) {
    size_t length = strlen(start);
    return strncmp(line, start, length) == 0 &&
           !(isdigit((unsigned char)start[length - 1]) && isdigit((unsigned char)line[length]));
}

/* The rest of the nth line that starts with `start`. */
static int find(const char *start, int nth, char *rest) {
    FILE *file = state();
    if (!file) return 0;
    char line[LINE_MAX_BYTES];
    int found = 0;
    while (!found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (starts(line, start) && nth-- == 0) {
            strcpy(rest, line + strlen(start));
            found = 1;
        }
    }
    fclose(file);
    return found;
}

/* The value of ` key=` in a line; it may stand in double quotes. */
static int field(const char *line, const char *key, char *value) {
    char mark[64];
    snprintf(mark, sizeof mark, " %s=", key);
    const char *at = strstr(line, mark);
    if (!at) return 0;
    at += strlen(mark);
    const char *end = " ";
    if (*at == '"') {
        at++;
        end = "\"";
    }
    size_t length = strcspn(at, end);
    memcpy(value, at, length);
    value[length] = 0;
    return 1;
}

static int number(const char *line, const char *key, unsigned long long *value) {
    char text[LINE_MAX_BYTES];
    if (!field(line, key, text)) return 0;
    *value = strtoull(text, NULL, 10);
    return 1;
}

static int gpu_line(int gpu, char *line) {
    char start[32];
    snprintf(start, sizeof start, "gpu %d", gpu);
    return find(start, 0, line);
}

static int gpu_count(void) {
    char rest[LINE_MAX_BYTES];
    int count = 0;
    if (find("count=", 0, rest)) return atoi(rest);
    while (find("gpu ", count, rest)) count++;
    return count;
}

/* === What every call does first === */

/* Looks for `verb call@gpu=`, `verb call=`, `verb *@gpu=` and `verb *=`. */
static int ordered(const char *verb, const char *call, int gpu, long *value) {
    const char *names[2] = {call, "*"};
    char start[128], rest[LINE_MAX_BYTES];
    for (int i = 0; i < 2; i++) {
        snprintf(start, sizeof start, "%s %s@%d=", verb, names[i], gpu);
        if (gpu != NOBODY && find(start, 0, rest)) goto found;
        snprintf(start, sizeof start, "%s %s=", verb, names[i]);
        if (find(start, 0, rest)) goto found;
    }
    return 0;
found:
    *value = atol(rest);
    return 1;
}

static void hang(const char *call, int gpu) {
    const long slice_ms = 5;
    long limit_ms, passed_ms = 0;
    if (!ordered("hang", call, gpu, &limit_ms)) return;
    char mark[4096];
    beside("hanging", mark, sizeof mark);
    FILE *file = fopen(mark, "w");
    if (file) fclose(file);
    while (passed_ms < limit_ms && ordered("hang", call, gpu, &limit_ms)) {
        struct timespec slice = {0, slice_ms * 1000000};
        nanosleep(&slice, NULL);
        passed_ms += slice_ms;
    }
    unlink(mark);
}

static answer enter(const char *call, int gpu) {
    long code;
    hang(call, gpu);
    if (ordered("return", call, gpu, &code)) return (answer)code;
    return OK;
}

static int gpu_of(device device) { return (int)(intptr_t)device - 1; }

static answer enter_system(const char *call) {
    return atomic_load(&initialised) > 0 ? enter(call, NOBODY) : UNINITIALIZED;
}

static answer enter_gpu(const char *call, device device, char *line) {
    if (atomic_load(&initialised) <= 0) return UNINITIALIZED;
    answer code = enter(call, gpu_of(device));
    if (code) return code;
    return gpu_line(gpu_of(device), line) ? OK : INVALID_ARGUMENT;
}

#define TRY(code)                     \
    do {                              \
        answer tried = (code);        \
        if (tried) return tried;      \
    } while (0)

static answer give(const char *text, char *out, unsigned int room) {
    if (strlen(text) >= room) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return OK;
}

static answer give_field(const char *line, const char *key, char *out, unsigned int room) {
    char text[LINE_MAX_BYTES];
    return field(line, key, text) ? give(text, out, room) : NOT_SUPPORTED;
}

static answer give_number(const char *call, device device, const char *key, unsigned int *out) {
    char line[LINE_MAX_BYTES];
    unsigned long long value;
    TRY(enter_gpu(call, device, line));
    if (!number(line, key, &value)) return NOT_SUPPORTED;
    *out = (unsigned int)value;
    return OK;
}

/* === System calls === */

answer nvmlInit_v2(void) {
    TRY(enter("nvmlInit_v2", NOBODY));
    atomic_fetch_add(&initialised, 1);
    return OK;
}

answer nvmlShutdown(void) {
    TRY(enter_system("nvmlShutdown"));
    atomic_fetch_sub(&initialised, 1);
    return OK;
}

static answer version(const char *call, const char *key, char *out, unsigned int room) {
    char text[LINE_MAX_BYTES];
    TRY(enter_system(call));
    return find(key, 0, text) ? give(text, out, room) : NOT_SUPPORTED;
}

answer nvmlSystemGetDriverVersion(char *out, unsigned int room) {
    return version("nvmlSystemGetDriverVersion", "driver=", out, room);
}

answer nvmlSystemGetNVMLVersion(char *out, unsigned int room) {
    return version("nvmlSystemGetNVMLVersion", "nvml=", out, room);
}

answer nvmlSystemGetProcessName(unsigned int pid, char *out, unsigned int room) {
    char line[LINE_MAX_BYTES];
    unsigned long long here;
    TRY(enter_system("nvmlSystemGetProcessName"));
    for (int i = 0; find("proc ", i, line); i++)
        if (number(line, "pid", &here) && here == pid)
            return give_field(line, "name", out, room) == OK ? OK : NOT_FOUND;
    return NOT_FOUND;
}

answer nvmlDeviceGetCount_v2(unsigned int *count) {
    TRY(enter_system("nvmlDeviceGetCount_v2"));
    *count = (unsigned int)gpu_count();
    return OK;
}

answer nvmlDeviceGetHandleByIndex_v2(unsigned int index, device *out) {
    TRY(enter_system("nvmlDeviceGetHandleByIndex_v2"));
    if ((int)index >= gpu_count()) return INVALID_ARGUMENT;
    TRY(enter("nvmlDeviceGetHandleByIndex_v2", (int)index));
    *out = (device)(intptr_t)(index + 1);
    return OK;
}

/* === Calls about one GPU === */

answer nvmlDeviceGetUUID(device device, char *out, unsigned int room) {
    char line[LINE_MAX_BYTES];
    TRY(enter_gpu("nvmlDeviceGetUUID", device, line));
    return give_field(line, "uuid", out, room);
}

answer nvmlDeviceGetName(device device, char *out, unsigned int room) {
    char line[LINE_MAX_BYTES];
    TRY(enter_gpu("nvmlDeviceGetName", device, line));
    return give_field(line, "name", out, room);
}

answer nvmlDeviceGetTemperature(device device, unsigned int sensor, unsigned int *out) {
    if (sensor != 0) return INVALID_ARGUMENT;
    return give_number("nvmlDeviceGetTemperature", device, "temp", out);
}

answer nvmlDeviceGetPowerUsage(device device, unsigned int *out) {
    return give_number("nvmlDeviceGetPowerUsage", device, "power_mw", out);
}

answer nvmlDeviceGetEnforcedPowerLimit(device device, unsigned int *out) {
    return give_number("nvmlDeviceGetEnforcedPowerLimit", device, "limit_mw", out);
}

answer nvmlDeviceGetUtilizationRates(device device, struct utilization *out) {
    char line[LINE_MAX_BYTES];
    unsigned long long gpu, memory;
    TRY(enter_gpu("nvmlDeviceGetUtilizationRates", device, line));
    if (!number(line, "util", &gpu) || !number(line, "mem_util", &memory)) return NOT_SUPPORTED;
    out->gpu = (unsigned int)gpu;
    out->memory = (unsigned int)memory;
    return OK;
}

static answer memory(const char *call, device device, struct memory_v2 *out) {
    char line[LINE_MAX_BYTES];
    TRY(enter_gpu(call, device, line));
    if (!number(line, "mem_total", &out->total) || !number(line, "mem_used", &out->used) ||
        !number(line, "mem_free", &out->free))
        return NOT_SUPPORTED;
    out->reserved = 0;
    number(line, "mem_reserved", &out->reserved);
    return OK;
}

answer nvmlDeviceGetMemoryInfo(device device, struct memory_v1 *out) {
    struct memory_v2 found;
    TRY(memory("nvmlDeviceGetMemoryInfo", device, &found));
    out->total = found.total;
    out->free = found.free;
    /* The first version has no word for the driver's own reserve. */
    out->used = found.used + found.reserved;
    return OK;
}

#ifndef OLD_DRIVER
answer nvmlDeviceGetMemoryInfo_v2(device device, struct memory_v2 *out) {
    if (out->version != (sizeof *out | 2u << 24)) return VERSION_MISMATCH;
    return memory("nvmlDeviceGetMemoryInfo_v2", device, out);
}
#endif

/* === Processes === */

static answer processes(const char *call, const char *kind, device device, unsigned int *count,
                        struct process *out) {
    char line[LINE_MAX_BYTES], start[32], text[LINE_MAX_BYTES];
    unsigned int room = *count, found = 0;
    unsigned long long pid;
    TRY(enter_gpu(call, device, line));
    snprintf(start, sizeof start, "no_processes %d", gpu_of(device));
    if (find(start, 0, line)) return NOT_SUPPORTED;
    snprintf(start, sizeof start, "proc %d", gpu_of(device));
    for (int i = 0; find(start, i, line); i++) {
        const char *is = field(line, "kind", text) ? text : "compute";
        if (strcmp(is, kind) != 0 || !number(line, "pid", &pid)) continue;
        if (found < room) {
            struct process *process = &out[found];
            process->pid = (unsigned int)pid;
            if (!number(line, "mem", &process->memory)) process->memory = ~0ull;
            process->gpu_instance = process->compute_instance = ~0u;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

#define PROCESSES(name, kind)                                                          \
    answer name(device device, unsigned int *count, struct process *out) {             \
        return processes(#name, kind, device, count, out);                             \
    }

PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
#ifndef OLD_DRIVER
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
#endif
