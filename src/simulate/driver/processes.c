/*
 * Who uses a device, and how much of it.
 */
#include "state.h"
#include <string.h>

/* Is this process on the device? Behind a MIG handle only those of its instances are. */
static int uses(const struct visit *visit, const struct thing *proc) {
    if (proc->gpu != visit->gpu || !proc->has[NUMBER_pid]) return 0;
    return !visit->is_mig || (proc->has[NUMBER_gi] && proc->number[NUMBER_gi] == visit->thing->number[NUMBER_gi] &&
                              proc->number[NUMBER_ci] == visit->thing->number[NUMBER_ci]);
}

static unsigned int instance(const struct thing *thing, enum number number) {
    return thing->has[number] ? (unsigned int)thing->number[number] : ~0u;
}

static answer processes(const struct visit *visit, const char *kind, unsigned int *count, struct process *out) {
    if (!count) return INVALID_ARGUMENT;
    if (visit->state->no_processes[visit->gpu]) return NOT_SUPPORTED;
    unsigned int room = *count, found = 0;
    const struct things *procs = &visit->state->things[KIND_proc];
    for (int i = 0; i < procs->count; i++) {
        const struct thing *proc = &procs->items[i];
        const char *is = proc->text[TEXT_kind] ? proc->text[TEXT_kind] : "compute";
        if (strcmp(is, kind) != 0 || !uses(visit, proc)) continue;
        if (found < room && out) {
            out[found].pid = (unsigned int)proc->number[NUMBER_pid];
            out[found].memory = proc->has[NUMBER_mem] ? proc->number[NUMBER_mem] : ~0ull;
            out[found].gpu_instance = instance(proc, NUMBER_gi);
            out[found].compute_instance = instance(proc, NUMBER_ci);
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}

#define PROCESSES(name, kind)                                                          \
    answer name(device device, unsigned int *count, struct process *out) {             \
        VISIT_DEVICE(device);                                                          \
        return processes(&visit, kind, count, out);                                    \
    }

PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2, "mps")
#ifndef OLD_DRIVER
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")
#endif

/* Samples are taken so often; between two of them there is nothing new. */
#define SAMPLE_EVERY_US 100000

answer nvmlDeviceGetProcessUtilization(device device, struct process_sample *out, unsigned int *count,
                                       wide last_seen) {
    VISIT_GPU(device);
    TRY(undivided(&visit));
    if (!count) return INVALID_ARGUMENT;
    wide now_us = (wide)clock_ns(CLOCK_REALTIME) / 1000, sampled = now_us - now_us % SAMPLE_EVERY_US;
    unsigned int room = out ? *count : 0, found = 0;
    const struct things *procs = &visit.state->things[KIND_proc];
    for (int i = 0; i < procs->count && sampled > last_seen; i++) {
        const struct thing *proc = &procs->items[i];
        if (!uses(&visit, proc) || !proc->has[NUMBER_sm]) continue;
        if (found < room)
            out[found] = (struct process_sample){
                .pid = (unsigned int)proc->number[NUMBER_pid],
                .timestamp = sampled,
                .sm = (unsigned int)proc->number[NUMBER_sm],
                .memory = (unsigned int)proc->number[NUMBER_mem_util],
                .encoder = (unsigned int)proc->number[NUMBER_enc],
                .decoder = (unsigned int)proc->number[NUMBER_dec],
            };
        found++;
    }
    *count = found;
    if (found > room) return INSUFFICIENT_SIZE;
    /* As the real library: nothing to tell is not an empty list. */
    return found ? OK : NOT_FOUND;
}
