/*
 * Calls about the driver as a whole, and finding devices.
 */
#include "state.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static answer start(const char *call) {
    VISIT;
    TRY(enter(&visit, call, NOBODY));
    atomic_fetch_add(&initialised, 1);
    return OK;
}

answer nvmlInit_v2(void) { return start(__func__); }
answer nvmlInit(void) { return start(__func__); }
answer nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    return start(__func__);
}

answer nvmlShutdown(void) {
    VISIT_SYSTEM;
    atomic_fetch_sub(&initialised, 1);
    return OK;
}

const char *nvmlErrorString(answer code) {
    static const char *const texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power",
        "Driver Not Loaded", "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found",
        "Function Not Found", "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "Operating System Blocked Request", "RM has detected an NVML/RM version mismatch.", "In use",
        "Insufficient Memory", "No data", "vGPU ECC Not Supported", "Insufficient resources",
        "Frequency Not Supported", "Argument version mismatch", "Deprecated", "Not Ready", "GPU not found",
        "Invalid State", "Reset type not supported",
    };
    return code < sizeof texts / sizeof *texts ? texts[code] : "Unknown Error";
}

answer nvmlSystemGetDriverVersion(char *out, unsigned int room) {
    VISIT_SYSTEM;
    return give(visit.state->driver, out, room);
}

answer nvmlSystemGetNVMLVersion(char *out, unsigned int room) {
    VISIT_SYSTEM;
    return give(visit.state->nvml, out, room);
}

static answer give_cuda(const struct state *state, int *out) {
    int major, minor;
    if (!state->cuda || sscanf(state->cuda, "%d.%d", &major, &minor) != 2) return NOT_SUPPORTED;
    *out = major * 1000 + minor * 10;
    return OK;
}

answer nvmlSystemGetCudaDriverVersion(int *out) {
    VISIT_SYSTEM;
    return give_cuda(visit.state, out);
}

answer nvmlSystemGetCudaDriverVersion_v2(int *out) {
    VISIT_SYSTEM;
    return give_cuda(visit.state, out);
}

answer nvmlSystemGetProcessName(unsigned int pid, char *out, unsigned int room) {
    VISIT_SYSTEM;
    const struct things *procs = &visit.state->things[KIND_proc];
    for (int i = 0; i < procs->count; i++) {
        const struct thing *proc = &procs->items[i];
        if (proc->has[NUMBER_pid] && proc->number[NUMBER_pid] == pid)
            return give(proc->text[TEXT_name], out, room) == OK ? OK : NOT_FOUND;
    }
    return NOT_FOUND;
}

/* === Finding devices === */

static answer give_count(const struct state *state, unsigned int *out) {
    if (!out) return INVALID_ARGUMENT;
    *out = (unsigned int)state->count;
    return OK;
}

answer nvmlDeviceGetCount_v2(unsigned int *out) {
    VISIT_SYSTEM;
    return give_count(visit.state, out);
}

answer nvmlDeviceGetCount(unsigned int *out) {
    VISIT_SYSTEM;
    return give_count(visit.state, out);
}

/* Finding counts as a call about the GPU that is found: orders about it hold. */
static answer enter_search(struct visit *visit) {
    if (atomic_load(&initialised) <= 0) return UNINITIALIZED;
    return renew(visit) ? OK : OUT_OF_MEMORY;
}

#define VISIT_SEARCH VISIT; TRY(enter_search(&visit))

static answer found_gpu(struct visit *visit, const char *call, int gpu, answer otherwise, device *out) {
    TRY(enter(visit, call, gpu));
    if (gpu == NOBODY || !out) return gpu == NOBODY ? otherwise : INVALID_ARGUMENT;
    *out = gpu_handle(gpu);
    return OK;
}

static answer by_index(struct visit *visit, const char *call, unsigned int index, device *out) {
    int is_one = index < (unsigned int)visit->state->count && index < GPUS_MAX;
    return found_gpu(visit, call, is_one ? (int)index : NOBODY, INVALID_ARGUMENT, out);
}

answer nvmlDeviceGetHandleByIndex_v2(unsigned int index, device *out) {
    VISIT_SEARCH;
    return by_index(&visit, __func__, index, out);
}

answer nvmlDeviceGetHandleByIndex(unsigned int index, device *out) {
    VISIT_SEARCH;
    return by_index(&visit, __func__, index, out);
}

static const struct thing *with_text(const struct state *state, enum kind kind, enum text text, const char *wanted) {
    const struct things *things = &state->things[kind];
    for (int i = 0; wanted && i < things->count; i++) {
        const char *here = things->items[i].text[text];
        if (here && strcmp(here, wanted) == 0) return &things->items[i];
    }
    return NULL;
}

answer nvmlDeviceGetHandleByUUID(const char *uuid, device *out) {
    VISIT_SEARCH;
    const struct thing *thing = with_text(visit.state, KIND_gpu, TEXT_uuid, uuid);
    if (thing) return found_gpu(&visit, __func__, thing->gpu, NOT_FOUND, out);
    thing = with_text(visit.state, KIND_mig, TEXT_uuid, uuid);
    int gpu = thing ? thing->gpu : NOBODY;
    device mig = thing ? mig_handle(gpu, thing->index) : NULL;
    TRY(found_gpu(&visit, __func__, gpu, NOT_FOUND, out));
    *out = mig;
    return OK;
}

answer nvmlDeviceGetHandleBySerial(const char *serial, device *out) {
    VISIT_SEARCH;
    const struct thing *thing = with_text(visit.state, KIND_gpu, TEXT_serial, serial);
    return found_gpu(&visit, __func__, thing ? thing->gpu : NOBODY, NOT_FOUND, out);
}

struct bus { unsigned int domain, bus, device, function; };

/* `00000000:01:00.0`, with a domain of any length or none. */
static int read_bus(const char *text, struct bus *bus) {
    memset(bus, 0, sizeof *bus);
    return text && (sscanf(text, "%x:%x:%x.%x", &bus->domain, &bus->bus, &bus->device, &bus->function) >= 3 ||
                    (bus->domain = 0, sscanf(text, "%x:%x.%x", &bus->bus, &bus->device, &bus->function) >= 2));
}

static answer by_bus(struct visit *visit, const char *call, const char *id, device *out) {
    struct bus wanted, here;
    int gpu = NOBODY, is_id = read_bus(id, &wanted);
    const struct things *cards = &visit->state->things[KIND_gpu];
    for (int i = 0; is_id && i < cards->count && gpu == NOBODY; i++)
        if (read_bus(cards->items[i].text[TEXT_pci], &here) && memcmp(&here, &wanted, sizeof here) == 0)
            gpu = cards->items[i].gpu;
    return found_gpu(visit, call, gpu, is_id ? NOT_FOUND : INVALID_ARGUMENT, out);
}

answer nvmlDeviceGetHandleByPciBusId_v2(const char *id, device *out) {
    VISIT_SEARCH;
    return by_bus(&visit, __func__, id, out);
}

answer nvmlDeviceGetHandleByPciBusId(const char *id, device *out) {
    VISIT_SEARCH;
    return by_bus(&visit, __func__, id, out);
}
