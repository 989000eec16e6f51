/*
 * Calls about one device: what it is, its memory, how busy it is.
 */
#include "state.h"
#include <stdio.h>
#include <string.h>

answer nvmlDeviceGetUUID(device device, char *out, unsigned int room) {
    VISIT_DEVICE(device);
    return give(visit.thing->text[TEXT_uuid], out, room);
}

answer nvmlDeviceGetName(device device, char *out, unsigned int room) {
    VISIT_DEVICE(device);
    const char *name = visit.thing->text[TEXT_name];
    if (!name && visit.is_mig) {
        const struct thing *parent = thing_of(visit.state, KIND_gpu, visit.gpu, 0);
        name = parent ? parent->text[TEXT_name] : NULL;
    }
    return give(name, out, room);
}

answer nvmlDeviceGetSerial(device device, char *out, unsigned int room) {
    VISIT_GPU(device);
    return give(visit.thing->text[TEXT_serial], out, room);
}

answer nvmlDeviceGetVbiosVersion(device device, char *out, unsigned int room) {
    VISIT_GPU(device);
    return give(visit.thing->text[TEXT_vbios], out, room);
}

answer nvmlDeviceGetIndex(device device, unsigned int *out) {
    VISIT_DEVICE(device);
    *out = visit.is_mig ? (unsigned int)visit.thing->index : (unsigned int)visit.gpu;
    return OK;
}

answer nvmlDeviceGetCudaComputeCapability(device device, int *major, int *minor) {
    VISIT_GPU(device);
    const char *text = visit.thing->text[TEXT_compute];
    return text && sscanf(text, "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}

NUMBER_CALL(nvmlDeviceGetMinorNumber, minor)
NUMBER_CALL(nvmlDeviceGetBrand, brand)
NUMBER_CALL(nvmlDeviceGetArchitecture, arch)
NUMBER_CALL(nvmlDeviceGetComputeMode, compute_mode)
NUMBER_CALL(nvmlDeviceGetPersistenceMode, persistence)
NUMBER_CALL(nvmlDeviceGetPerformanceState, pstate)
NUMBER_CALL(nvmlDeviceGetPowerState, pstate)

/* === PCI === */

static answer give_pci(const char *id, const struct thing *thing, struct pci_info *out) {
    struct bus bus;
    if (!out) return INVALID_ARGUMENT;
    if (!read_bus(id, &bus)) return NOT_SUPPORTED;
    memset(out, 0, sizeof *out);
    out->domain = bus.domain;
    out->bus = bus.bus;
    out->device = bus.device;
    if (thing) {
        out->device_id = (unsigned int)thing->number[NUMBER_pci_device];
        out->subsystem_id = (unsigned int)thing->number[NUMBER_pci_subsystem];
    }
    snprintf(out->id, sizeof out->id, "%08X:%02X:%02X.%X", bus.domain, bus.bus & 0xff, bus.device & 0xff,
             bus.function & 0xf);
    snprintf(out->legacy_id, sizeof out->legacy_id, "%04X:%02X:%02X.%X", bus.domain & 0xffff, bus.bus & 0xff,
             bus.device & 0xff, bus.function & 0xf);
    return OK;
}

answer nvmlDeviceGetPciInfo_v3(device device, struct pci_info *out) {
    VISIT_GPU(device);
    return give_pci(visit.thing->text[TEXT_pci], visit.thing, out);
}

answer nvmlDeviceGetPciInfo_v2(device device, struct pci_info *out) {
    VISIT_GPU(device);
    return give_pci(visit.thing->text[TEXT_pci], visit.thing, out);
}

/* === Memory === */

static answer memory(const struct thing *thing, struct memory_v2 *out) {
    TRY(give_wide(thing, NUMBER_mem_total, &out->total));
    TRY(give_wide(thing, NUMBER_mem_used, &out->used));
    TRY(give_wide(thing, NUMBER_mem_free, &out->free));
    out->reserved = thing->number[NUMBER_mem_reserved];
    return OK;
}

answer nvmlDeviceGetMemoryInfo(device device, struct memory_v1 *out) {
    struct memory_v2 found;
    VISIT_DEVICE(device);
    TRY(memory(visit.thing, &found));
    out->total = found.total;
    out->free = found.free;
    /* The first version has no word for the driver's own reserve. */
    out->used = found.used + found.reserved;
    return OK;
}

#ifndef OLD_DRIVER
answer nvmlDeviceGetMemoryInfo_v2(device device, struct memory_v2 *out) {
    struct memory_v2 found;
    VISIT_DEVICE(device);
    if (out->version != STRUCT_VERSION(struct memory_v2, 2)) return VERSION_MISMATCH;
    TRY(memory(visit.thing, &found));
    found.version = out->version;
    *out = found;
    return OK;
}
#endif

answer nvmlDeviceGetBAR1MemoryInfo(device device, struct bar1_memory *out) {
    struct bar1_memory found;
    VISIT_DEVICE(device);
    TRY(give_wide(visit.thing, NUMBER_bar1_total, &found.total));
    TRY(give_wide(visit.thing, NUMBER_bar1_used, &found.used));
    found.free = found.total > found.used ? found.total - found.used : 0;
    *out = found;
    return OK;
}

/* === How busy === */

/* The real library does not tell these of a card that is divided. */
static answer undivided(const struct visit *visit) {
    return visit->thing->has[NUMBER_mig] && visit->thing->number[NUMBER_mig] ? NOT_SUPPORTED : OK;
}

answer nvmlDeviceGetUtilizationRates(device device, struct utilization *out) {
    struct utilization found;
    VISIT_GPU(device);
    TRY(undivided(&visit));
    TRY(give_narrow(visit.thing, NUMBER_util, &found.gpu));
    TRY(give_narrow(visit.thing, NUMBER_mem_util, &found.memory));
    *out = found;
    return OK;
}

/* What the real library measured over when it was looked at; it varies there with the card. */
#define SAMPLING_PERIOD_US 167000

static answer engine(const struct visit *visit, enum number number, unsigned int *out, unsigned int *period_us) {
    TRY(undivided(visit));
    TRY(give_narrow(visit->thing, number, out));
    if (period_us) *period_us = SAMPLING_PERIOD_US;
    return OK;
}

answer nvmlDeviceGetEncoderUtilization(device device, unsigned int *out, unsigned int *period_us) {
    VISIT_GPU(device);
    return engine(&visit, NUMBER_enc_util, out, period_us);
}

answer nvmlDeviceGetDecoderUtilization(device device, unsigned int *out, unsigned int *period_us) {
    VISIT_GPU(device);
    return engine(&visit, NUMBER_dec_util, out, period_us);
}
