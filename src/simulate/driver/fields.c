/*
 * Field values: readings by number, many in one call, each with an answer of its own. The numbers are those of
 * the public header, `NVML_FI_...`.
 */
#include "state.h"

/* Fields that are one number of the card. */
static const struct plain {
    unsigned int field;
    enum number number;
    unsigned int type;
} plain[] = {
    {1, NUMBER_ecc, VALUE_UINT},
    {29, NUMBER_retired_single, VALUE_UINT},
    {30, NUMBER_retired_double, VALUE_UINT},
    {31, NUMBER_retired_pending, VALUE_UINT},
    {74, NUMBER_violation_power_ns, VALUE_WIDE},
    {75, NUMBER_violation_thermal_ns, VALUE_WIDE},
    {82, NUMBER_temp_memory, VALUE_UINT},
    {94, NUMBER_pcie_replays, VALUE_UINT},
    {142, NUMBER_rows_correctable, VALUE_UINT},
    {143, NUMBER_rows_uncorrectable, VALUE_UINT},
    {144, NUMBER_rows_pending, VALUE_UINT},
    {145, NUMBER_rows_failed, VALUE_UINT},
    {173, NUMBER_pcie_correctable, VALUE_UINT},
    {179, NUMBER_pcie_nonfatal, VALUE_UINT},
    {180, NUMBER_pcie_fatal, VALUE_UINT},
    {185, NUMBER_power_mw, VALUE_UINT},
    {186, NUMBER_power_instant_mw, VALUE_UINT},
    {187, NUMBER_limit_min_mw, VALUE_UINT},
    {188, NUMBER_limit_max_mw, VALUE_UINT},
    {189, NUMBER_limit_default_mw, VALUE_UINT},
    {190, NUMBER_limit_mw, VALUE_UINT},
    {197, NUMBER_pcie_tx_bytes, VALUE_WIDE},
    {198, NUMBER_pcie_rx_bytes, VALUE_WIDE},
    {230, NUMBER_recovery, VALUE_UINT},
};

/* Errors of NVLinks: a field for each of the first six links and one for their sum, and six more for the next. */
static const struct ladder {
    unsigned int first, total, seventh;
    enum number number;
} ladders[] = {
    {32, 38, 96, NUMBER_crc_errors},
    {39, 45, 102, NUMBER_crc_errors},
    {46, 52, 108, NUMBER_replay_errors},
    {53, 59, 114, NUMBER_recovery_errors},
    {148, 160, 154, NUMBER_ecc_errors},
};

/* Readings of one NVLink: `scope` names it, or all with the largest number there is. */
static const struct scoped {
    unsigned int field;
    enum number number;
    unsigned int kib;
} scoped[] = {
    {138, NUMBER_tx_kib, 1},           {139, NUMBER_rx_kib, 1},       {140, NUMBER_tx_kib, 1},
    {141, NUMBER_rx_kib, 1},           {161, NUMBER_replay_errors, 1}, {162, NUMBER_recovery_errors, 1},
    {163, NUMBER_crc_errors, 1},       {164, NUMBER_speed_mbps, 1},   {166, NUMBER_version, 1},
    {202, NUMBER_tx_kib, 1024},        {204, NUMBER_rx_kib, 1024},    {208, NUMBER_crc_errors, 1},
    {215, NUMBER_recovery_errors, 1},
};

#define ALL_LINKS (~0u)

static answer sum_links(const struct visit *visit, enum number number, wide *out) {
    answer code = NOT_SUPPORTED;
    const struct things *links = &visit->state->things[KIND_link];
    *out = 0;
    for (int i = 0; i < links->count; i++) {
        wide one;
        if (links->items[i].gpu != visit->gpu || give_wide(&links->items[i], number, &one) != OK) continue;
        *out += one;
        code = OK;
    }
    return code;
}

static answer one_link(const struct visit *visit, unsigned int link, enum number number, wide *out) {
    const struct thing *found;
    TRY(find_link(visit, link, &found));
    return give_wide(found, number, out);
}

static answer ladder_field(const struct visit *visit, unsigned int field, wide *out) {
    for (size_t i = 0; i < sizeof ladders / sizeof *ladders; i++) {
        const struct ladder *ladder = &ladders[i];
        if (field == ladder->total) return sum_links(visit, ladder->number, out);
        if (field >= ladder->first && field < ladder->first + 6)
            return one_link(visit, field - ladder->first, ladder->number, out);
        if (field >= ladder->seventh && field < ladder->seventh + 6)
            return one_link(visit, field - ladder->seventh + 6, ladder->number, out);
    }
    return NOT_SUPPORTED;
}

static unsigned int count_links(const struct visit *visit) {
    unsigned int count = 0;
    const struct things *links = &visit->state->things[KIND_link];
    for (int i = 0; i < links->count; i++) count += links->items[i].gpu == visit->gpu;
    return count;
}

/* What a field holds, and of which type it is. */
static answer field(const struct visit *visit, unsigned int field, unsigned int scope, wide *out,
                    unsigned int *type) {
    *type = VALUE_WIDE;
    /* Single and double bit errors, volatile and aggregate. */
    if (field >= 3 && field <= 6) return ecc_errors(visit->thing, (field - 3) % 2, (field - 3) / 2, out);
    if (field == 83 || field == 191) return energy(visit, out);
    for (size_t i = 0; i < sizeof scoped / sizeof *scoped; i++) {
        if (scoped[i].field != field) continue;
        TRY(scope == ALL_LINKS ? sum_links(visit, scoped[i].number, out)
                               : one_link(visit, scope, scoped[i].number, out));
        *out *= scoped[i].kib;
        return OK;
    }
    *type = VALUE_UINT;
    if (field == 91) return (*out = count_links(visit)) ? OK : NOT_SUPPORTED;
    if (field == 165) {
        const struct thing *link;
        TRY(find_link(visit, scope, &link));
        *out = !link->has[NUMBER_active] || link->number[NUMBER_active];
        return OK;
    }
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        if (plain[i].field != field) continue;
        /* Power of the module or of its memory is not told. */
        if (field >= 185 && field <= 190 && scope != 0) return NOT_SUPPORTED;
        *type = plain[i].type;
        return give_wide(visit->thing, plain[i].number, out);
    }
    *type = VALUE_WIDE;
    return ladder_field(visit, field, out);
}

answer nvmlDeviceGetFieldValues(device device, int count, struct field_value *values) {
    VISIT_GPU(device);
    if (count < 0 || (count > 0 && !values)) return INVALID_ARGUMENT;
    for (int i = 0; i < count; i++) {
        wide found = 0;
        struct field_value *value = &values[i];
        value->answer = field(&visit, value->field, value->scope, &found, &value->type);
        value->timestamp_us = clock_ns(CLOCK_REALTIME) / 1000;
        value->latency_us = 0;
        value->value.wide = value->answer == OK ? found : 0;
    }
    return OK;
}
