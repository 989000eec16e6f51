/*
 * Power, energy, heat and clocks.
 */
#include "state.h"
#include <string.h>

NUMBER_CALL(nvmlDeviceGetPowerUsage, power_mw)
NUMBER_CALL(nvmlDeviceGetEnforcedPowerLimit, limit_mw)
NUMBER_CALL(nvmlDeviceGetPowerManagementDefaultLimit, limit_default_mw)

static answer set_limit(const struct thing *thing, unsigned int *out) {
    /* What was asked for, where it differs from what is enforced. */
    answer code = give_narrow(thing, NUMBER_limit_set_mw, out);
    return code == NOT_SUPPORTED ? give_narrow(thing, NUMBER_limit_mw, out) : code;
}

answer nvmlDeviceGetPowerManagementLimit(device device, unsigned int *out) {
    VISIT_GPU(device);
    return set_limit(visit.thing, out);
}

answer nvmlDeviceGetPowerManagementLimitConstraints(device device, unsigned int *least, unsigned int *most) {
    VISIT_GPU(device);
    TRY(give_narrow(visit.thing, NUMBER_limit_min_mw, least));
    return give_narrow(visit.thing, NUMBER_limit_max_mw, most);
}

static answer energy(const struct visit *visit, wide *out) {
    const char *how = visit->thing->text[TEXT_energy];
    if (!how || strcmp(how, "auto") != 0) return give_wide(visit->thing, NUMBER_energy_mj, out);
    if (!visit->thing->has[NUMBER_power_mw]) return NOT_SUPPORTED;
    *out = visit->thing->number[NUMBER_energy_mj] + flowed_mj(visit->gpu);
    return OK;
}

answer nvmlDeviceGetTotalEnergyConsumption(device device, wide *out) {
    VISIT_GPU(device);
    return energy(&visit, out);
}

/* === Heat === */

answer nvmlDeviceGetTemperature(device device, unsigned int sensor, unsigned int *out) {
    VISIT_GPU(device);
    if (sensor != 0) return INVALID_ARGUMENT;
    return give_narrow(visit.thing, NUMBER_temp, out);
}

#ifndef OLD_DRIVER
answer nvmlDeviceGetTemperatureV(device device, struct temperature *out) {
    unsigned int found;
    VISIT_GPU(device);
    if (out->version != STRUCT_VERSION(struct temperature, 1)) return VERSION_MISMATCH;
    if (out->sensor != 0) return INVALID_ARGUMENT;
    TRY(give_narrow(visit.thing, NUMBER_temp, &found));
    out->temperature = (int)found;
    return OK;
}
#endif

answer nvmlDeviceGetTemperatureThreshold(device device, unsigned int threshold, unsigned int *out) {
    static const enum number numbers[] = {NUMBER_temp_shutdown, NUMBER_temp_slowdown, NUMBER_temp_mem_max,
                                          NUMBER_temp_gpu_max};
    VISIT_GPU(device);
    /* Behind these four come the acoustic ones, which no server card has. */
    if (threshold >= 8) return INVALID_ARGUMENT;
    return threshold < 4 ? give_narrow(visit.thing, numbers[threshold], out) : NOT_SUPPORTED;
}

/* === Clocks: graphics, SM, memory, video === */

static const enum number clocks[] = {NUMBER_sm_mhz, NUMBER_sm_mhz, NUMBER_mem_mhz, NUMBER_video_mhz};
static const enum number clocks_max[] = {NUMBER_sm_max_mhz, NUMBER_sm_max_mhz, NUMBER_mem_max_mhz,
                                         NUMBER_video_max_mhz};

answer nvmlDeviceGetClockInfo(device device, unsigned int which, unsigned int *out) {
    VISIT_GPU(device);
    return which < 4 ? give_narrow(visit.thing, clocks[which], out) : INVALID_ARGUMENT;
}

answer nvmlDeviceGetMaxClockInfo(device device, unsigned int which, unsigned int *out) {
    VISIT_GPU(device);
    return which < 4 ? give_narrow(visit.thing, clocks_max[which], out) : INVALID_ARGUMENT;
}

answer nvmlDeviceGetClock(device device, unsigned int which, unsigned int id, unsigned int *out) {
    VISIT_GPU(device);
    if (which >= 4 || id >= 4) return INVALID_ARGUMENT;
    /* The present clock, and the highest one that a customer may set. */
    if (id == 0) return give_narrow(visit.thing, clocks[which], out);
    return id == 3 ? give_narrow(visit.thing, clocks_max[which], out) : NOT_SUPPORTED;
}

/* Every reason that the public header names. */
#define REASONS 0x1ff

static answer supported_reasons(const struct thing *thing, wide *out) {
    answer code = give_wide(thing, NUMBER_throttle_supported, out);
    if (code != NOT_SUPPORTED || !thing->has[NUMBER_throttle]) return code;
    *out = REASONS;
    return OK;
}

WIDE_CALL(nvmlDeviceGetCurrentClocksThrottleReasons, throttle)

answer nvmlDeviceGetSupportedClocksThrottleReasons(device device, wide *out) {
    VISIT_GPU(device);
    return supported_reasons(visit.thing, out);
}

#ifndef OLD_DRIVER
WIDE_CALL(nvmlDeviceGetCurrentClocksEventReasons, throttle)

answer nvmlDeviceGetSupportedClocksEventReasons(device device, wide *out) {
    VISIT_GPU(device);
    return supported_reasons(visit.thing, out);
}
#endif

answer nvmlDeviceGetViolationStatus(device device, unsigned int policy, struct violation *out) {
    wide found;
    VISIT_GPU(device);
    if (policy >= 12) return INVALID_ARGUMENT;
    if (policy > 1) return NOT_SUPPORTED;
    TRY(give_wide(visit.thing, policy ? NUMBER_violation_thermal_ns : NUMBER_violation_power_ns, &found));
    out->reference_ns = (wide)clock_ns(CLOCK_REALTIME);
    out->violation_ns = found;
    return OK;
}
