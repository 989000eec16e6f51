/*
 * An NVML that costs nothing: eight cards, every call answers with a constant. What a plane over it takes is
 * the plane's own.
 */
#include <stddef.h>
#include <string.h>
#include <time.h>

#define CARDS 8
#define PROCESSES 4

typedef unsigned int answer;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef void *handle;

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMED_OUT = 10 };

struct memory_v2 { u32 version; u64 total, reserved, free, used; };
struct bar1 { u64 total, free, used; };
struct utilization { u32 gpu, memory; };
struct process { u32 pid; u64 memory; u32 gpu_instance, compute_instance; };
struct sample { u32 pid; u64 timestamp; u32 sm, memory, encoder, decoder; };
struct pci { char legacy[16]; u32 domain, bus, device, id, subsystem; char bus_id[32]; };
struct field { u32 id, scope; long long timestamp, latency; u32 type, code; u64 value; };

static answer text(const char *from, char *out) { return strcpy(out, from), OK; }

answer nvmlInit_v2(void) { return OK; }
answer nvmlShutdown(void) { return OK; }
answer nvmlSystemGetDriverVersion(char *out, u32 room) { return (void)room, text("580.65.06", out); }
answer nvmlSystemGetNVMLVersion(char *out, u32 room) { return (void)room, text("13.580.65.06", out); }
answer nvmlSystemGetProcessName(u32 pid, char *out, u32 room) { return (void)pid, (void)room, text("/usr/bin/python3", out); }
answer nvmlDeviceGetCount_v2(u32 *out) { return *out = CARDS, OK; }
answer nvmlDeviceGetHandleByIndex_v2(u32 index, handle *out) { return *out = (handle)(size_t)(index + 1), OK; }
answer nvmlDeviceGetName(handle card, char *out, u32 room) { return (void)card, (void)room, text("NVIDIA H200", out); }

answer nvmlDeviceGetUUID(handle card, char *out, u32 room) {
    (void)room;
    text("GPU-00000000-0000-0000-0000-000000000000", out);
    out[39] += (char)(size_t)card;
    return OK;
}

answer nvmlDeviceGetPciInfo_v3(handle card, struct pci *out) {
    (void)card;
    memset(out, 0, sizeof *out);
    return text("00000000:1B:00.0", out->bus_id);
}

#define ONE(name, type, value) \
    answer name(handle card, type *out) { return (void)card, *out = (value), OK; }
#define ONE_OF(name, type, value) \
    answer name(handle card, u32 which, type *out) { return (void)card, (void)which, *out = (value), OK; }
#define TWO(name, one, other) \
    answer name(handle card, u32 *first, u32 *second) { return (void)card, *first = (one), *second = (other), OK; }

ONE(nvmlDeviceGetMemoryInfo_v2, struct memory_v2, ((struct memory_v2){out->version, 100, 1, 49, 50}))
ONE(nvmlDeviceGetBAR1MemoryInfo, struct bar1, ((struct bar1){100, 99, 1}))
ONE(nvmlDeviceGetUtilizationRates, struct utilization, ((struct utilization){87, 41}))
ONE(nvmlDeviceGetPowerUsage, u32, 612345)
ONE(nvmlDeviceGetEnforcedPowerLimit, u32, 700000)
ONE(nvmlDeviceGetTotalEnergyConsumption, u64, 123456789)
ONE_OF(nvmlDeviceGetTemperature, u32, 63)
ONE_OF(nvmlDeviceGetTemperatureThreshold, u32, 87)
ONE_OF(nvmlDeviceGetClockInfo, u32, 1755)
ONE_OF(nvmlDeviceGetMaxClockInfo, u32, 1980)
ONE(nvmlDeviceGetCurrentClocksThrottleReasons, u64, 0)
TWO(nvmlDeviceGetEccMode, 1, 1)
TWO(nvmlDeviceGetMigMode, 0, 0)
ONE(nvmlDeviceGetRetiredPagesPendingStatus, u32, 0)
ONE(nvmlDeviceGetCurrPcieLinkGeneration, u32, 5)
ONE(nvmlDeviceGetCurrPcieLinkWidth, u32, 16)
ONE(nvmlDeviceGetMaxPcieLinkGeneration, u32, 5)
ONE(nvmlDeviceGetMaxPcieLinkWidth, u32, 16)
ONE(nvmlDeviceGetPcieReplayCounter, u32, 0)
ONE(nvmlDeviceGetComputeMode, u32, 0)
ONE(nvmlDeviceGetPersistenceMode, u32, 1)
ONE_OF(nvmlDeviceGetNvLinkState, u32, 1)

answer nvmlDeviceGetTotalEccErrors(handle card, u32 error, u32 counter, u64 *out) {
    return (void)card, (void)error, (void)counter, *out = 0, OK;
}
answer nvmlDeviceGetNvLinkErrorCounter(handle card, u32 link, u32 counter, u64 *out) {
    return (void)card, (void)link, (void)counter, *out = 0, OK;
}
answer nvmlDeviceGetRemappedRows(handle card, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed) {
    return (void)card, *corrected = *uncorrected = *pending = *failed = 0, OK;
}
answer nvmlDeviceGetRetiredPages(handle card, u32 cause, u32 *count, u64 *pages) {
    return (void)card, (void)cause, (void)pages, *count = 0, OK;
}
answer nvmlDeviceGetRetiredPages_v2(handle card, u32 cause, u32 *count, u64 *pages, u64 *times) {
    return (void)card, (void)cause, (void)pages, (void)times, *count = 0, OK;
}
answer nvmlDeviceGetFieldValues(handle card, int count, struct field *fields) {
    (void)card;
    for (int i = 0; i < count; i++) fields[i].type = 3, fields[i].code = OK, fields[i].value = 1;
    return OK;
}

answer nvmlDeviceGetComputeRunningProcesses_v3(handle card, u32 *count, struct process *out) {
    (void)card;
    u32 room = *count;
    *count = PROCESSES;
    if (room < PROCESSES) return INSUFFICIENT_SIZE;
    for (u32 i = 0; i < PROCESSES; i++) out[i] = (struct process){4100 + i, 10, ~0u, ~0u};
    return OK;
}
answer nvmlDeviceGetGraphicsRunningProcesses_v3(handle card, u32 *count, struct process *out) {
    return (void)card, (void)out, *count = 0, OK;
}
answer nvmlDeviceGetMPSComputeRunningProcesses_v3(handle card, u32 *count, struct process *out) {
    return (void)card, (void)out, *count = 0, OK;
}
answer nvmlDeviceGetProcessUtilization(handle card, struct sample *out, u32 *count, u64 since) {
    (void)card;
    u32 room = out ? *count : 0;
    *count = PROCESSES;
    if (room < PROCESSES) return INSUFFICIENT_SIZE;
    for (u32 i = 0; i < PROCESSES; i++) out[i] = (struct sample){4100 + i, since + 1000000, 50, 5, 0, 0};
    return OK;
}

answer nvmlEventSetCreate(handle *out) { return *out = (handle)1, OK; }
answer nvmlEventSetFree(handle set) { return (void)set, OK; }
ONE(nvmlDeviceGetSupportedEventTypes, u64, 0xffff)
answer nvmlDeviceRegisterEvents(handle card, u64 types, handle set) {
    return (void)card, (void)types, (void)set, OK;
}
answer nvmlEventSetWait_v2(handle set, void *out, u32 limit_ms) {
    struct timespec limit = {limit_ms / 1000, (long)(limit_ms % 1000) * 1000000};
    (void)set, (void)out;
    nanosleep(&limit, NULL);
    return TIMED_OUT;
}
