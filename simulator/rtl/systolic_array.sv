// The array: ROWS x COLS PEs and an accumulator below each column. Row 0 is north, column 0 is west.
//
// What enters at an edge enters skewed: the feeders give row r of the west edge its activations and control r cycles after
// row 0, and in double-buffered timing column c of the north edge its weights c cycles after column 0.
// Masks are flattened: the mask of PE (r, c) is slice r * COLS + c, that of column c slice c.

module systolic_array #(
    parameter int ROWS = 4,
    parameter int COLS = 4,
    parameter int WEIGHT_BITS = 8,
    parameter int ACT_BITS = 8,
    parameter int ACT_SIGNED = 1,
    parameter int ACC_BITS = 32,
    parameter int ACC_DEPTH = 64,
    parameter int MULTIPLIER_LOCATIONS = 1,
    localparam int PES = ROWS * COLS,
    localparam int PRODUCT_BITS = WEIGHT_BITS + ACT_BITS,
    localparam int ROW_BITS = $clog2(ACC_DEPTH)
) (
    input logic clock,
    input logic reset,
    input logic stream,
    input logic load,
    input logic load_last,

    input logic [ROWS-1:0] load_west,
    input logic [ROWS-1:0] switch_west,
    input logic [ROWS*ACT_BITS-1:0] activation_west,
    input logic [COLS*WEIGHT_BITS-1:0] weight_north,

    // Control of the accumulator of column 0.
    input logic write,
    input logic add,
    input logic [ROW_BITS-1:0] write_row,

    input logic [PES-1:0] bypass,
    input logic [PES*WEIGHT_BITS-1:0] weight_invert,
    input logic [PES*WEIGHT_BITS-1:0] weight_clear,
    input logic [PES*WEIGHT_BITS-1:0] weight_set,
    input logic [PES*WEIGHT_BITS-1:0] weight_load_invert,
    input logic [PES*WEIGHT_BITS-1:0] weight_load_clear,
    input logic [PES*WEIGHT_BITS-1:0] weight_load_set,
    input logic [PES*ACT_BITS-1:0] activation_invert,
    input logic [PES*ACT_BITS-1:0] activation_clear,
    input logic [PES*ACT_BITS-1:0] activation_set,
    input logic [PES*PRODUCT_BITS-1:0] product_invert,
    input logic [PES*PRODUCT_BITS-1:0] product_clear,
    input logic [PES*PRODUCT_BITS-1:0] product_set,
    input logic [PES*ACC_BITS-1:0] psum_invert,
    input logic [PES*ACC_BITS-1:0] psum_clear,
    input logic [PES*ACC_BITS-1:0] psum_set,
    input logic [PES*MULTIPLIER_LOCATIONS-1:0] multiplier_invert,
    input logic [PES*MULTIPLIER_LOCATIONS-1:0] multiplier_clear,
    input logic [PES*MULTIPLIER_LOCATIONS-1:0] multiplier_set,
    input logic [COLS*ACC_BITS-1:0] accumulator_invert,
    input logic [COLS*ACC_BITS-1:0] accumulator_clear,
    input logic [COLS*ACC_BITS-1:0] accumulator_set,

    // What each column's accumulator stores at the end of this cycle, and whether it does.
    output logic [COLS-1:0] written,
    output logic [COLS*ROW_BITS-1:0] written_row,
    output logic [COLS*ACC_BITS-1:0] written_data
);

  // Place i is the edge or PE i / COLS, i % COLS and what it hands on; a row has one more place than PEs, a column as well.
  wire loading[0:ROWS*(COLS+1)-1];
  wire switching[0:ROWS*(COLS+1)-1];
  wire [ACT_BITS-1:0] activations[0:ROWS*(COLS+1)-1];
  wire [WEIGHT_BITS-1:0] weights[0:(ROWS+1)*COLS-1];
  wire [ACC_BITS-1:0] psums[0:(ROWS+1)*COLS-1];
  wire [ACC_BITS-1:0] leaving[0:PES-1];

  for (genvar r = 0; r < ROWS; r++) begin : row
    assign loading[r*(COLS+1)] = load_west[r];
    assign switching[r*(COLS+1)] = switch_west[r];
    assign activations[r*(COLS+1)] = activation_west[r*ACT_BITS+:ACT_BITS];

    for (genvar c = 0; c < COLS; c++) begin : column
      localparam int PE = r * COLS + c;
      localparam int WEST = r * (COLS + 1) + c;
      pe #(
          .WEIGHT_BITS(WEIGHT_BITS),
          .ACT_BITS(ACT_BITS),
          .ACT_SIGNED(ACT_SIGNED),
          .ACC_BITS(ACC_BITS),
          .MULTIPLIER_LOCATIONS(MULTIPLIER_LOCATIONS)
      ) element (
          .clock(clock),
          .reset(reset),
          .stream(stream),
          .load(load),
          .load_last(load_last),
          .load_west(loading[WEST]),
          .switch_west(switching[WEST]),
          .load_east(loading[WEST+1]),
          .switch_east(switching[WEST+1]),
          .weight_north(weights[PE]),
          .weight_south(weights[PE+COLS]),
          .activation_west(activations[WEST]),
          .activation_east(activations[WEST+1]),
          .psum_north(psums[PE]),
          .psum_south(psums[PE+COLS]),
          .psum_leaving(leaving[PE]),
          .bypass(bypass[PE]),
          .weight_invert(weight_invert[PE*WEIGHT_BITS+:WEIGHT_BITS]),
          .weight_clear(weight_clear[PE*WEIGHT_BITS+:WEIGHT_BITS]),
          .weight_set(weight_set[PE*WEIGHT_BITS+:WEIGHT_BITS]),
          .weight_load_invert(weight_load_invert[PE*WEIGHT_BITS+:WEIGHT_BITS]),
          .weight_load_clear(weight_load_clear[PE*WEIGHT_BITS+:WEIGHT_BITS]),
          .weight_load_set(weight_load_set[PE*WEIGHT_BITS+:WEIGHT_BITS]),
          .activation_invert(activation_invert[PE*ACT_BITS+:ACT_BITS]),
          .activation_clear(activation_clear[PE*ACT_BITS+:ACT_BITS]),
          .activation_set(activation_set[PE*ACT_BITS+:ACT_BITS]),
          .product_invert(product_invert[PE*PRODUCT_BITS+:PRODUCT_BITS]),
          .product_clear(product_clear[PE*PRODUCT_BITS+:PRODUCT_BITS]),
          .product_set(product_set[PE*PRODUCT_BITS+:PRODUCT_BITS]),
          .psum_invert(psum_invert[PE*ACC_BITS+:ACC_BITS]),
          .psum_clear(psum_clear[PE*ACC_BITS+:ACC_BITS]),
          .psum_set(psum_set[PE*ACC_BITS+:ACC_BITS]),
          .multiplier_invert(multiplier_invert[PE*MULTIPLIER_LOCATIONS+:MULTIPLIER_LOCATIONS]),
          .multiplier_clear(multiplier_clear[PE*MULTIPLIER_LOCATIONS+:MULTIPLIER_LOCATIONS]),
          .multiplier_set(multiplier_set[PE*MULTIPLIER_LOCATIONS+:MULTIPLIER_LOCATIONS])
      );
    end
  end

  wire writing[0:COLS];
  wire adding[0:COLS];
  wire [ROW_BITS-1:0] rows_written[0:COLS];
  assign writing[0] = write;
  assign adding[0] = add;
  assign rows_written[0] = write_row;

  for (genvar c = 0; c < COLS; c++) begin : edges
    assign weights[c] = weight_north[c*WEIGHT_BITS+:WEIGHT_BITS];
    assign psums[c] = '0;

    column_accumulator #(
        .ACC_BITS(ACC_BITS),
        .DEPTH(ACC_DEPTH)
    ) accumulator (
        .clock(clock),
        .reset(reset),
        .write_west(writing[c]),
        .add_west(adding[c]),
        .row_west(rows_written[c]),
        .write_east(writing[c+1]),
        .add_east(adding[c+1]),
        .row_east(rows_written[c+1]),
        .psum_leaving(leaving[(ROWS-1)*COLS+c]),
        .accumulator_invert(accumulator_invert[c*ACC_BITS+:ACC_BITS]),
        .accumulator_clear(accumulator_clear[c*ACC_BITS+:ACC_BITS]),
        .accumulator_set(accumulator_set[c*ACC_BITS+:ACC_BITS]),
        .written(written[c]),
        .written_row(written_row[c*ROW_BITS+:ROW_BITS]),
        .written_data(written_data[c*ACC_BITS+:ACC_BITS])
    );
  end

endmodule
